"""Run by test_zero3_training.py in each of two processes: initial weights and saved weights under ZeRO-3.

Usage: as zero3_checks.py. The same file is also a launcher: `zero3_training_checks.py --recipe FILE RECORD ARGUMENTS...`
runs a recipe script and, where it saves its model, writes to RECORD what the processes hold together: {name: [shape,
type, SHA-256]} of each parameter that is trained.
"""

import hashlib
import json
import math
import runpy
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


INITIAL = {
    "vocab_size": 2000,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "sliding_window": 32,
}


def initial_weights(folder: Path, tied: bool) -> dict[str, float]:
    """A model made in partitions, gathered, beside the one made whole from the same seed."""
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    from hfgpt import GPT3Config
    from hfgpt.training.zero import initial_model

    config = GPT3Config(**INITIAL, tie_word_embeddings=tied)
    whole = dict(initial_model(config, seed=7).named_parameters())
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    hf_config = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero})
    model = initial_model(config, seed=7)
    del hf_config
    result = {
        "tied": float(model.lm_head.weight is model.model.embed_tokens.weight),
        "names differ": float(dict(model.named_parameters()).keys() != whole.keys()),
        "not partitioned": 0.0,
        "other than whole": 0.0,
        "matrix": 0.0,
        "residual": 0.0,
        "mean": 0.0,
        "bias": 0.0,
        "norm": 0.0,
    }
    residual = 0.02 / math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        half = (whole[name].numel() + 1) // 2
        result["not partitioned"] += parameter.ds_tensor.numel() != half or parameter.numel() > 0
        with deepspeed.zero.GatheredParameters(parameter):
            value = parameter.detach().clone()
        result["other than whole"] += not torch.equal(value, whole[name])
        if "norm" in name:
            wanted = torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)
            result["norm"] = max(result["norm"], (value - wanted).abs().max().item())
        elif name.endswith("bias"):
            result["bias"] = max(result["bias"], value.abs().max().item())
        else:
            kind = "residual" if "o_proj" in name or "down_proj" in name else "matrix"
            std = residual if kind == "residual" else 0.02
            result[kind] = max(result[kind], abs(value.std().item() / std - 1))
            # In standard errors.
            result["mean"] = max(result["mean"], abs(value.mean().item()) / std * math.sqrt(value.numel()))
    return result


CHECKS: dict[str, Callable[[Path], dict[str, float]]] = {
    "tied": lambda folder: initial_weights(folder, tied=True),
    "untied": lambda folder: initial_weights(folder, tied=False),
}


def record_what_is_saved(file: Path) -> None:
    """Have the Trainer write down the gathered parameters at each save; the last one's stay."""
    import deepspeed
    from transformers import Trainer

    save_model = Trainer.save_model

    def recording(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        record = {}
        # After a forward pass alone some can be on their way; as DeepSpeed does before it saves.
        self.deepspeed.optimizer.checkpoint_event_prologue()
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            partitioned = parameter.numel() == 0
            with deepspeed.zero.GatheredParameters(parameter):
                value = parameter.detach().cpu().contiguous()
                digest = hashlib.sha256(value.view(torch.uint8).numpy().tobytes()).hexdigest()
                record[name] = [list(value.shape), str(value.dtype), digest, partitioned]
        self.deepspeed.optimizer.checkpoint_event_epilogue()
        if dist.get_rank() == 0:
            file.write_text(json.dumps(record))
        save_model(self, output_dir, _internal_call)

    Trainer.save_model = recording


def main() -> None:
    if sys.argv[1:2] == ["--recipe"]:
        recipe, file, *arguments = sys.argv[2:]
        sys.argv = [recipe, *arguments]
        record_what_is_saved(Path(file))
        runpy.run_path(recipe, run_name="__main__")
        return
    import deepspeed
    from checks import run_checks

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes a minute
    # Where one process fails, the other is not to wait for it for long.
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    deepspeed.init_distributed("gloo", verbose=False)
    run_checks(CHECKS)


if __name__ == "__main__":
    main()

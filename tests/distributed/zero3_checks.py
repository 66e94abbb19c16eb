"""Run by test_zero3_loss.py in each of two processes: a tiny model partitioned by ZeRO-3, beside the whole one.

Usage: `DS_ACCELERATOR=cpu python -m torch.distributed.run --nproc_per_node 2 zero3_checks.py FOLDER`. Each writes
FOLDER/rank<n>.json, {check: {quantity: number}}: largest differences from the whole model, which makes its loss of all
the logits, and facts as 0 or 1. A check that raises leaves its traceback under "error" in place of numbers.
"""

import sys
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model"))
from checks import run_checks
from tiny_models import TINY, make_ids, make_model

from hfgpt.model import loss, modeling_gpt3


# Compiling it takes a minute, and changes no number.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

modeling_gpt3.CHUNK_BYTES = 0  # the loss without the logits, however small they are
loss.CHUNK_BYTES = 8 * TINY["vocab_size"] * 4  # and in several chunks: 8 tokens in float32

LEARNING_RATE = 0.1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_labels(ids: torch.Tensor) -> torch.Tensor:
    """Some tokens without a loss, more of them in the first row: the means are over different numbers."""
    labels = ids.clone()
    labels[0, 2:11] = -100
    labels[1, 5] = -100
    return labels


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape, (one.shape, other.shape)
    return (one.float() - other.float()).abs().max().item()


def gather(model: nn.Module, read: Callable[[nn.Parameter], torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """What `read` finds of each parameter, in an order that all processes share."""
    return {name: read(parameter) for name, parameter in model.named_parameters()}


def relative_difference(found: dict[str, torch.Tensor | None], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference, relative to the largest number expected anywhere."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    assert not (missing := [name for name, tensor in found.items() if tensor is None]), missing
    scale = max(tensor.abs().max().item() for tensor in expected.values())
    return max(difference(found[name], expected[name]) for name in expected) / scale


@contextmanager
def partitioned(reference: nn.Module, folder: Path, dtype: str):
    """The reference model, saved, loaded in partitions and given to DeepSpeed."""
    if dist.get_rank() == 0:
        reference.save_pretrained(folder)
    dist.barrier()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bfloat16"},
        # Small parameters are otherwise left whole, and all of these are small.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0},
    }
    hf_config = HfDeepSpeedConfig(config)  # while it lives, models are partitioned as they are made
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    del hf_config
    try:
        yield engine
    finally:
        engine.destroy()


def count_unpartitioned(model: nn.Module, reference: nn.Module) -> float:
    """Parameters of which this process does not hold half (rounded up) and no more, as it is to outside of layers."""
    sizes = {name: parameter.numel() for name, parameter in reference.named_parameters()}
    parameters = dict(model.named_parameters())
    assert parameters.keys() == sizes.keys(), parameters.keys() ^ sizes.keys()
    return float(
        sum(
            parameter.ds_tensor.numel() != (sizes[name] + 1) // 2 or parameter.numel() > 0
            for name, parameter in parameters.items()
        )
    )


def train(
    folder: Path, tied: bool, dtype: str = "float32", checkpointing: bool = False, silent: bool = False
) -> dict[str, float]:
    """One step, a row for each process. `silent`: no token of the last row has a loss, and the sum is divided."""
    ids = make_ids(2, 20)
    labels = make_labels(ids)
    options: dict[str, int] = {}
    if silent:
        labels[-1] = -100
        options["num_items_in_batch"] = 13
    rank, rows = dist.get_rank(), [slice(row, row + 1) for row in range(2)]
    reference = make_model(tie_word_embeddings=tied).to(DTYPES[dtype])
    with partitioned(reference, folder, dtype) as engine:
        model = engine.module
        result = {
            "not partitioned at first": count_unpartitioned(model, reference),
            "tied": float(model.lm_head.weight is model.model.embed_tokens.weight),
        }

        engine.eval()
        reference.eval()
        with torch.no_grad():
            row = ids[rows[rank]]
            result["logits"] = difference(engine(row).logits, reference(row).logits)
            few = row[:, :3]
            result["logits of few tokens"] = difference(engine(few).logits, reference(few).logits)

        engine.train()
        reference.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = engine(row, labels=labels[rows[rank]], use_cache=False, **options)
        result["logits in training"] = float(output.logits is not None)
        engine.backward(output.loss)
        losses = [
            reference(ids[part], labels=labels[part], use_cache=False, skip_logits=False, **options).loss
            for part in rows
        ]
        (sum(losses) / 2).backward()
        result["loss"] = difference(output.loss.detach(), losses[rank].detach())
        result["rows differ by"] = difference(*(one.detach() for one in losses))
        expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
        result["gradients"] = relative_difference(gather(model, safe_get_full_grad), expected)

        engine.step()
        # DeepSpeed trains a copy in float32.
        before = {name: parameter.detach().float() for name, parameter in reference.named_parameters()}
        found = gather(model, safe_get_full_fp32_param)
        moved = {name: None if found[name] is None else found[name] - before[name] for name in found}
        steps = {name: -LEARNING_RATE * expected[name].float() for name in expected}
        result["not partitioned at last"] = count_unpartitioned(model, reference)
        result["step"] = relative_difference(moved, steps)
    return result


CHECKS: dict[str, Callable[[Path], dict[str, float]]] = {
    "tied": lambda folder: train(folder, tied=True),
    "untied": lambda folder: train(folder, tied=False),
    "tied, checkpointed": lambda folder: train(folder, tied=True, checkpointing=True),
    "untied, checkpointed": lambda folder: train(folder, tied=False, checkpointing=True),
    "tied, bfloat16": lambda folder: train(folder, tied=True, dtype="bfloat16"),
    "untied, bfloat16": lambda folder: train(folder, tied=False, dtype="bfloat16"),
    "tied, one row without a loss": lambda folder: train(folder, tied=True, silent=True),
}


def main() -> None:
    # Where one process fails, the other is not to wait for it for long.
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    deepspeed.init_distributed("gloo", verbose=False)
    run_checks(CHECKS)


if __name__ == "__main__":
    main()

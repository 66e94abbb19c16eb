"""A tiny Trainer for the tests of the callbacks; as a script, what each of two processes of it finds.

Usage: `python -m torch.distributed.run --nproc_per_node 2 callback_runs.py FOLDER`. Writes FOLDER/rank<n>.json.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.training.callbacks import (
    Progress,
    SampleCallback,
    StragglerCallback,
    ThroughputCallback,
    set_up_reporters,
)


LENGTH = 16
PROMPTS = ["The film was", "영화는", ""]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


class ReportingTrainer(Trainer):
    """One that wires the callbacks as a trainer of one's own does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.progress = Progress(train_tokens=1000)
        self.throughput = ThroughputCallback(
            self.progress, SimpleNamespace(paper=6e6, dense=8e6, banded=7e6), peak_flops_per_device=1e12
        )
        self.add_callback(self.throughput)
        self.add_callback(SampleCallback(make_tokenizer(), PROMPTS, 8, log=self.log))
        self.stragglers = StragglerCallback()
        set_up_reporters(self)

    def training_step(self, *args):
        self.progress.step_tokens = 100 + self.state.global_step
        with self.stragglers.timed():
            loss = super().training_step(*args)
        self.progress.tokens_seen += self.progress.step_tokens
        return loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs.update(self.throughput.metrics())
            logs.update(self.stragglers.metrics())
        elif "eval_loss" in logs:
            logs["tokens"] = self.progress.tokens_seen
        super().log(logs, start_time)


def make_trainer(output_dir: Path, callbacks: list[Any], cls: type[Trainer] = Trainer, **fields: Any) -> Any:
    """Eight steps, evaluated every four, of a model whose dropout draws random numbers."""
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 2,
        "max_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **fields,
    }
    set_seed(0)
    config = GPT3Config(
        vocab_size=257, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        residual_dropout=0.1, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    ids = torch.randint(0, 256, (64, LENGTH), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    return cls(
        model=GPT3ForCausalLM(config),
        args=TrainingArguments(**values),
        train_dataset=rows,
        eval_dataset=rows[:4],
        callbacks=callbacks,
    )


def weights(trainer: Trainer) -> torch.Tensor:
    """All weights, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def main() -> None:
    folder = Path(sys.argv[1])
    plain = make_trainer(folder / "plain", [], ddp_backend="gloo")
    plain.train()
    sampled = make_trainer(folder / "sampled", [SampleCallback(make_tokenizer(), PROMPTS, 8)], ddp_backend="gloo")
    sampled.train()
    rank = dist.get_rank()
    stragglers = StragglerCallback()
    stragglers._seconds, stragglers._times = 10 * (1.0 + 2 * rank), 10  # the second process is three times as slow
    found = {"same": bool(torch.equal(weights(plain), weights(sampled))), "metrics": stragglers.metrics()}
    with stragglers.timed():
        pass
    found["again"] = stragglers.metrics()
    found["nothing timed"] = stragglers.metrics()
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads can abort the interpreter at exit


if __name__ == "__main__":
    main()

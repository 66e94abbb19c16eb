"""A tiny Trainer for the tests of the callbacks; as a script, what each of two processes of it finds.

Usage: `python -m torch.distributed.run --nproc_per_node 2 callback_runs.py FOLDER`. Writes FOLDER/rank<n>.json.
"""

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.modeling_outputs import CausalLMOutput

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.training.callbacks import (
    CheckpointPruningCallback,
    LivePlotCallback,
    LossWatchCallback,
    MetricStoppingCallback,
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


def make_model(kind: str) -> Any:
    """A tiny model of the Hub's GPT-2 or of gpt3, whose dropout draws random numbers."""
    set_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=256, eos_token_id=256
            )
        )
    config = GPT3Config(
        vocab_size=257, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        residual_dropout=0.1, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    return GPT3ForCausalLM(config)


def make_trainer(
    output_dir: Path,
    callbacks: list[Any],
    cls: type[Trainer] = Trainer,
    kind: str = "gpt3",
    options: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    """Eight steps, evaluated every four; `options` are the trainer's, `fields` its arguments'."""
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
    ids = torch.randint(0, 256, (64, LENGTH), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    return cls(
        **{
            "model": make_model(kind),
            "args": TrainingArguments(**values),
            "train_dataset": rows,
            "eval_dataset": rows[:4],
            "data_collator": default_data_collator,  # also with a tokenizer, for which Trainer has another
            "callbacks": callbacks,
            **(options or {}),
        }
    )


class BadLoss:
    """A loss that is multiplied at some steps (from 1), as `compute_loss_func` of any Trainer with one micro-batch a step."""

    def __init__(self, factors: dict[int, float]):
        self.factors, self.calls = factors, 0

    def __call__(self, outputs: CausalLMOutput, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        if outputs.logits.requires_grad:
            self.calls += 1
            loss = loss * self.factors.get(self.calls, 1.0)
        return loss


def weights(trainer: Trainer) -> torch.Tensor:
    """All weights, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def watched(folder: Path, rank: int) -> dict[str, Any]:
    """A GPT-2 with all that watches, in a folder of this process; the second one's third loss is not finite."""
    watch = LossWatchCallback()
    callbacks = [ThroughputCallback(), watch, MetricStoppingCallback("loss", target=100.0), LivePlotCallback()]
    loss = BadLoss({3: math.nan} if rank == 1 else {})
    trainer = make_trainer(folder, callbacks, kind="gpt2", options={"compute_loss_func": loss}, ddp_backend="gloo",
                           logging_steps=4)  # fmt: skip
    trainer.train()
    return {
        "events": [(event["step"], event["event"]) for event in watch.events],
        "stopped at": trainer.state.global_step,
        "tokens": [entry["tokens"] for entry in trainer.state.log_history if "loss" in entry],
        "finite": bool(weights(trainer).isfinite().all()),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    plain = make_trainer(folder / "plain", [], ddp_backend="gloo")
    plain.train()
    seen = [SampleCallback(make_tokenizer(), PROMPTS, 8), CheckpointPruningCallback(1)]
    saved = {"save_strategy": "steps", "save_steps": 2}
    sampled = make_trainer(folder / "sampled", seen, ddp_backend="gloo", **saved)
    sampled.train()
    rank = dist.get_rank()
    stragglers = StragglerCallback()
    stragglers._seconds, stragglers._times = 10 * (1.0 + 2 * rank), 10  # the second process is three times as slow
    found = {"same": bool(torch.equal(weights(plain), weights(sampled))), "metrics": stragglers.metrics()}
    with stragglers.timed():
        pass
    found["again"] = stragglers.metrics()
    found["nothing timed"] = stragglers.metrics()
    found |= watched(folder / f"watched{rank}", rank)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads can abort the interpreter at exit


if __name__ == "__main__":
    main()

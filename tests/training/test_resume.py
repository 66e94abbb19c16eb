"""An interrupted run is the uninterrupted one, bit for bit in float32 on a processor."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY_MODEL, pretrain_arguments
from safetensors.torch import load_file

from hfgpt.data.packing import TOKENIZER_FOLDER, PackedDataset
from hfgpt.data.tokenizer import train_tokenizer
from hfgpt.training.arguments import PretrainConfig, PretrainingArguments, parse_arguments
from hfgpt.training.checkpoints import MANIFEST_FILE, files_below, hash_files, write_manifest
from hfgpt.training.interruption import REQUEUE_EXIT_CODE, Interrupted
from hfgpt.training.pretrain import pretrain
from hfgpt.training.schedule import BatchSchedule
from hfgpt.training.steps import POSITION_FILE
from hfgpt.training.trainer import PretrainingTrainer


LENGTH, BATCH = 32, 4
STEP = BATCH * LENGTH
STEPS = 12
# Sources of so many sequences; one is read more than once.
SEQUENCES = {"crawl": 100, "wiki": 9}
# From 2 sequences to 6, over 30: 2 2 3 3 4 4 5 5 6 6 ...
RAMP = {
    "batch_size_tokens": 6 * LENGTH, "batch_ramp_start_tokens": 2 * LENGTH, "batch_ramp_tokens": 28 * LENGTH,
    "batch_increment_tokens": LENGTH, "train_tokens": 48 * LENGTH,
}  # fmt: skip
DROPOUT = {**TINY_MODEL, "attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1}
TIMES = (
    "runtime",
    "per_second",
    "eta",
    "memory",
    "straggler",
    "mfu",
)  # in the names of what differs between any two runs


def write_corpus(folder: Path, sequences: dict[str, int], weights: dict[str, float] | None, seed: int = 0) -> Path:
    """A corpus of a few words at random, no two sequences alike; the validation split has three sequences."""
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 4, 300)
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    generator = np.random.default_rng(seed)

    def write(split: str, name: str, count: int) -> dict:
        path = folder / split / name / "00000.bin"
        path.parent.mkdir(parents=True)
        size = count * LENGTH
        path.write_bytes(generator.integers(3, 40, size=size).astype("<u2").tobytes())
        shards = [{"file": str(path.relative_to(folder)), "tokens": size}]
        return {"documents": 1, "tokens": size, "bytes": size, "shards": shards}

    splits = {}
    for split, sizes in (("train", sequences), ("validation", dict.fromkeys(sequences, 3))):
        sources = {name: write(split, name, count) for name, count in sizes.items()}
        splits[split] = {
            "shards": [shard for source in sources.values() for shard in source["shards"]], "sources": sources,
            **{key: sum(source[key] for source in sources.values()) for key in ("documents", "tokens", "bytes")},
        }  # fmt: skip
    metadata = {
        "dtype": "<u2", "vocab_size": len(tokenizer), "end_of_text_token_id": tokenizer.eos_token_id, "splits": splits,
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps({**metadata, "weights": weights} if weights else metadata))
    return folder


@pytest.fixture(scope="module")
def plain_corpus(tmp_path_factory):
    """One stream of 24 sequences: an epoch ends with the sixth step of four."""
    return write_corpus(tmp_path_factory.mktemp("plain"), {"web": 24}, None)


@pytest.fixture(scope="module")
def mixed_corpus(tmp_path_factory):
    """Two weighted sources."""
    return write_corpus(tmp_path_factory.mktemp("mixed"), SEQUENCES, {"crawl": 2, "wiki": 1})


class Run:
    """A run in this process, and what it read.

    Attributes:
        folder: Its output.
        rows: The token ids of each row that had a loss, by step.
        interrupted: What it was told to stop by, if it was.
    """

    def __init__(self, corpus, folder, /, signal_at: int | None = None, **fields):
        self.folder, self.rows, self.interrupted = folder, {}, None
        step = PretrainingTrainer.training_step

        def training_step(trainer, model, inputs, *args, **kwargs):
            number = trainer.state.global_step + 1
            kept = inputs["labels"][:, 0] != -100
            self.rows[number] = inputs["input_ids"][kept].tolist()
            if number == signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer, model, inputs, *args, **kwargs)

        fields = {"train_tokens": STEPS * STEP, "warmup_tokens": 2 * STEP, "decay_tokens": 11 * STEP, **fields}
        argv = pretrain_arguments(corpus, folder, **{"save_steps": 3, "eval_steps": 4, **fields})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PretrainingTrainer, "training_step", training_step)
            try:
                self.metrics = pretrain(*parse_arguments(PretrainConfig, PretrainingArguments, argv=argv))
            except Interrupted as error:
                assert error.code == REQUEUE_EXIT_CODE
                self.interrupted = str(error)

    def state(self) -> dict:
        return json.loads((self.folder / "trainer_state.json").read_text())

    def log(self, name: str) -> dict:
        """Of each step at which it was logged."""
        return {entry["step"]: entry[name] for entry in self.state()["log_history"] if name in entry}

    def order(self) -> list:
        return [row for step in sorted(self.rows) for row in self.rows[step]]


def assert_same(run: Run, whole: Run, but: tuple[str, ...] = ()) -> None:
    """Losses, learning rates, tokens of every step; weights, optimizer, random state and position at the end."""

    def told(run):
        return [
            {name: value for name, value in entry.items() if not any(word in name for word in TIMES + but)}
            for entry in run.state()["log_history"]
            if "train_loss" not in entry  # Trainer's mean over the steps of this process
        ]

    assert told(run) == told(whole)
    assert run.state()["global_step"] == whole.state()["global_step"]
    last = f"checkpoint-{whole.state()['global_step']}"
    for folder in ("", last):
        a, b = (load_file(r.folder / folder / "model.safetensors") for r in (run, whole))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert (run.folder / last / POSITION_FILE).read_text() == (whole.folder / last / POSITION_FILE).read_text()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        a, b = (torch.load(r.folder / last / name, weights_only=False) for r in (run, whole))
        assert flat(a) == flat(b), name


def flat(value, path=""):
    """A nested state as {path: number or bytes}."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for n, item in enumerate(value) for k, v in flat(item, f"{path}/{n}").items()}
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    return {path: value.tobytes() if isinstance(value, np.ndarray) else value}


def resume(corpus, whole: Run, folder: Path, step: int, **fields) -> Run:
    """What a run does that was killed after its checkpoint of this step."""
    shutil.copytree(whole.folder / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    resumed = Run(corpus, folder, **fields)
    assert min(resumed.rows) == step + 1  # it did resume
    return resumed


CASES = {
    "an epoch of the data ends there": ("plain", 6, {}),
    "in a ramp": ("plain", 3, RAMP),
    "at a ramp's step, with loader workers": ("mixed", 6, {**RAMP, "dataloader_num_workers": 2}),
    "dropout, micro-batches, a ramp, a mixture": (
        "mixed", 6, {**RAMP, "model_overrides": json.dumps(DROPOUT), "per_device_train_batch_size": 2},
    ),
    "bfloat16 and dropout in a ramp": (
        "mixed", 3, {**RAMP, "bf16": "true", "model_overrides": json.dumps(DROPOUT)},
    ),
    "saved between two log lines": ("plain", 6, {**RAMP, "logging_steps": 4}),
    "recomputed activations": ("plain", 3, {"gradient_checkpointing": "true", "model_overrides": json.dumps(DROPOUT)}),
}  # fmt: skip


SLOW = {"bfloat16 and dropout in a ramp", "recomputed activations"}


@pytest.mark.parametrize(
    ("corpus_name", "step", "fields"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in CASES.items()],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(request, tmp_path, corpus_name, step, fields):
    corpus = request.getfixturevalue(f"{corpus_name}_corpus")
    whole = Run(corpus, tmp_path / "whole", **fields)
    if "batch_ramp_tokens" in fields:
        assert list(whole.log("batch_tokens").values())[:3] != [6 * LENGTH] * 3
    resumed = resume(corpus, whole, tmp_path / "resumed", step, **fields)
    assert_same(resumed, whole)
    assert resumed.rows == {number: rows for number, rows in whole.rows.items() if number > step}


def test_an_epoch_has_every_sequence_once_and_the_next_another_order(plain_corpus, tmp_path):
    order = Run(plain_corpus, tmp_path, save_strategy="no").order()
    first, second = order[:24], order[24:]
    assert sorted(first) == sorted(second) and first != second
    assert len(set(map(tuple, first))) == 24


def test_a_run_that_is_told_to_stop_goes_on_as_if_nothing_had_been(mixed_corpus, tmp_path):
    """Twice, and at no step at which it would have saved anyway."""
    fields = {**RAMP, "dataloader_num_workers": 2, "model_overrides": json.dumps(DROPOUT), "eval_steps": 6}
    whole = Run(mixed_corpus, tmp_path / "whole", **fields)
    first = Run(mixed_corpus, tmp_path / "stopped", signal_at=3, **fields)
    assert "SIGTERM" in first.interrupted and list(first.rows) == [1, 2, 3, 4]
    second = Run(mixed_corpus, tmp_path / "stopped", signal_at=7, **fields)
    assert "SIGTERM" in second.interrupted and list(second.rows) == [5, 6, 7, 8]
    third = Run(mixed_corpus, tmp_path / "stopped", **fields)
    assert third.interrupted is None
    assert_same(third, whole)
    assert {**first.rows, **second.rows, **third.rows} == whole.rows


@pytest.fixture(scope="module")
def ramped(mixed_corpus, tmp_path_factory):
    """A run with a growing batch, whole."""
    return Run(mixed_corpus, tmp_path_factory.mktemp("ramped"), **RAMP)


def test_what_is_read_are_the_samples_of_the_order(mixed_corpus, ramped):
    order = PackedDataset(mixed_corpus, LENGTH, 1000, seed=42)
    rows = ramped.order()
    assert rows == [order[index]["input_ids"].tolist() for index in range(len(rows))]
    sizes = [len(ramped.rows[step]) for step in sorted(ramped.rows)]
    assert sizes == [2, 2, 3, 3, 3, 4, 4, 5, 6, 6, 6, 6]  # 2 + 4 n / 28 to the nearest, by hand
    assert ramped.log("batch_tokens") == {n: 32 * size for n, size in enumerate(sizes, 1)}
    assert ramped.log("tokens")[12] == 32 * sum(sizes) == ramped.metrics["train_tokens"]


@pytest.mark.parametrize(
    "fields", [{"per_device_train_batch_size": 1}, {"per_device_train_batch_size": 3, "dataloader_num_workers": 1}]
)
def test_another_micro_batch_changes_neither_data_nor_batch(mixed_corpus, tmp_path, ramped, fields):
    resumed = resume(mixed_corpus, ramped, tmp_path, 3, **{**RAMP, **fields})
    assert {**ramped.rows, **resumed.rows} == ramped.rows and len(resumed.rows) == 9
    for name in ("learning_rate", "tokens", "batch_tokens"):
        assert resumed.log(name) == ramped.log(name)
    assert resumed.log("loss") == pytest.approx(ramped.log("loss"), abs=2e-6)


def test_what_a_recipe_leaves_open_stays_as_the_run_began(plain_corpus, tmp_path):
    """The batch of 2 x 2, with another micro-batch, accumulation, and both."""
    whole = Run(plain_corpus, tmp_path / "a", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for number, fields in enumerate(({"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 3})):
        resumed = resume(plain_corpus, whole, tmp_path / f"b{number}", 6, **fields)
        assert resumed.rows == {step: rows for step, rows in whole.rows.items() if step > 6}
        assert resumed.log("tokens") == whole.log("tokens")
        assert resumed.log("loss") == pytest.approx(whole.log("loss"), abs=2e-6)


def test_a_finished_run_goes_on_with_more_tokens(mixed_corpus, tmp_path):
    fields = {"model_overrides": json.dumps(DROPOUT), "eval_steps": 6}
    whole = Run(mixed_corpus, tmp_path / "whole", **fields)
    half = Run(mixed_corpus, tmp_path / "grown", train_tokens=6 * STEP, **fields)
    assert half.metrics["train_tokens"] == 6 * STEP
    grown = Run(mixed_corpus, tmp_path / "grown", **fields)
    assert grown.metrics["train_tokens"] == STEPS * STEP
    assert_same(grown, whole, but=("epoch",))
    again = Run(mixed_corpus, tmp_path / "grown", **fields)
    assert again.rows == {} and again.metrics == grown.metrics


def test_steps_as_the_end_of_a_run(mixed_corpus, tmp_path, ramped):
    """`max_steps` counts those before a resume."""
    stopped = Run(mixed_corpus, tmp_path, **{**RAMP, "max_steps": 5, "save_steps": 5})
    assert stopped.metrics["train_tokens"] == ramped.log("tokens")[5]
    grown = Run(mixed_corpus, tmp_path, **{**RAMP, "max_steps": 9})
    assert {**stopped.rows, **grown.rows} == {n: rows for n, rows in ramped.rows.items() if n <= 9}
    assert grown.metrics["train_tokens"] == ramped.log("tokens")[9]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": 7}, "(seed)"),
        ({"data_seed": 7}, "(seed)"),
        ({"sequence_length": 16}, "(sequence_length)"),
        ({"mixture_weights": '{"crawl": 1, "wiki": 1}'}, "(weights)"),
        ("plain", "(weights, tokens)"),
    ],
    ids=["seed", "data seed", "sequence length", "weights", "corpus"],
)
def test_other_data_is_refused_with_what_is_other(mixed_corpus, plain_corpus, tmp_path, ramped, fields, words):
    shutil.copytree(ramped.folder / "checkpoint-6", tmp_path / "checkpoint-6")
    corpus = plain_corpus if fields == "plain" else mixed_corpus
    with pytest.raises(ValueError) as error:
        Run(corpus, tmp_path, **{**RAMP, **({} if fields == "plain" else fields)})
    assert words in str(error.value)
    assert "`ignore_data_skip: true`" in str(error.value) and "checkpoint-6" in str(error.value)


def test_other_data_begins_at_its_first_sequence_where_that_is_asked_for(mixed_corpus, tmp_path, ramped):
    """The schedule goes on; a second interruption does not begin the data once more."""
    fields = {**RAMP, "ignore_data_skip": "true", "data_seed": 7}
    resumed = resume(mixed_corpus, ramped, tmp_path / "a", 6, **fields)
    order = PackedDataset(mixed_corpus, LENGTH, 1000, seed=7)
    rows = resumed.order()
    assert rows == [order[index]["input_ids"].tolist() for index in range(len(rows))]
    for name in ("learning_rate", "tokens", "batch_tokens"):
        assert resumed.log(name) == ramped.log(name)
    again = resume(mixed_corpus, resumed, tmp_path / "b", 9, **fields)
    assert again.rows == {step: rows for step, rows in resumed.rows.items() if step > 9}
    assert_same(again, resumed)


def test_a_resumed_run_reads_nothing_but_what_it_trains_on(mixed_corpus, tmp_path, ramped, monkeypatch):
    """At 300B tokens as at the beginning; nor does it step through the schedule."""
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(ramped.folder / "checkpoint-6", folder)
    position = json.loads((folder / POSITION_FILE).read_text())
    position["sequences_seen"] = far = 300 * 10**9 // LENGTH
    (folder / POSITION_FILE).write_text(json.dumps(position))
    (folder / MANIFEST_FILE).unlink()
    write_manifest(folder, hash_files(folder, files_below(folder)))
    reads, asked = [], []
    get, sequences = PackedDataset.__getitem__, BatchSchedule.sequences
    monkeypatch.setattr(PackedDataset, "__getitem__", lambda self, index: (reads.append(index), get(self, index))[1])
    monkeypatch.setattr(BatchSchedule, "sequences", lambda self, seen: (asked.append(seen), sequences(self, seen))[1])
    fields = {**RAMP, "train_tokens": 300 * 10**9 + 12 * LENGTH, "batch_ramp_tokens": 310 * 10**9}
    Run(mixed_corpus, tmp_path, **{**fields, "decay_tokens": 260 * 10**9})
    assert reads == list(range(far, far + 12))  # two steps of 6
    assert len(asked) < 200


def test_what_the_recipe_says_of_the_optimizer_now_holds_after_a_resume(plain_corpus, tmp_path):
    Run(plain_corpus, tmp_path, train_tokens=6 * STEP)
    now = {"learning_rate": 1e-3, "weight_decay": 0.25, "adam_beta2": 0.9, "train_tokens": 9 * STEP}
    run = Run(plain_corpus, tmp_path, **now)
    rates = {entry["step"]: entry["learning_rate"] for entry in run.state()["log_history"] if "learning_rate" in entry}
    assert rates[1] == pytest.approx(3e-3 / 2)
    assert 0 < rates[7] < 1e-3
    saved = torch.load(run.folder / "checkpoint-9" / "optimizer.pt", weights_only=True)["param_groups"]
    assert [group["weight_decay"] for group in saved] == [0.25, 0.0]
    assert all(group["betas"][1] == 0.9 for group in saved)

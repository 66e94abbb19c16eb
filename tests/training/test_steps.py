"""The data of every step, and that a step is what a plain PyTorch loop makes of that data, however it is divided."""

import json
import random
from itertools import islice

import pytest
import torch
from helpers import pretrain_arguments
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer

from hfgpt.data.packing import PackedDataset
from hfgpt.training import pretrain as pretraining
from hfgpt.training.arguments import PretrainConfig, PretrainingArguments, parse_arguments
from hfgpt.training.schedule import BatchSchedule
from hfgpt.training.steps import POSITION_FILE, Position, StepLoader, StepRows
from hfgpt.training.trainer import PretrainingTrainer


class Numbers(Dataset):
    """Sample i is full of i; it takes negative ones, too."""

    def __getitem__(self, index):
        return {"input_ids": torch.full((3,), index), "labels": torch.full((3,), index)}


def counted(batch):
    """The samples of a batch that have labels, and how many have none."""
    kept = [int(row[0]) for row in batch["labels"] if row[0] != -100]
    assert kept == [int(row[0]) for row in batch["input_ids"]][: len(kept)]  # the idle come last
    assert all((row == row[0]).all() for row in batch["labels"])
    return kept, len(batch["labels"]) - len(kept)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 16])
def test_the_processes_together_have_the_samples_of_a_step_in_order(world):
    schedule = BatchSchedule(sequence_length=3, increment=1, full_tokens=33, start_tokens=3, ramp_tokens=150)
    for first, count in islice(schedule.steps(), 20):
        shares = [counted(StepRows(Numbers(), rank, world)[first, count]) for rank in range(world)]
        assert [sample for kept, _ in shares for sample in kept] == list(range(first, first + count))
        rows = {len(kept) + idle for kept, idle in shares}
        assert rows == {-(-count // world)}  # as many to run for each
        assert sum(idle for _, idle in shares) == -count % world or count < world


def test_idle_rows_take_nothing_from_the_data():
    """A process with nothing to do runs a sample of the step, and leaves the dataset's own tensors as they are."""
    kept = {5: {"input_ids": torch.full((3,), 5), "labels": torch.full((3,), 5)}}
    batch = StepRows(kept, rank=2, world=3)[5, 1]
    assert batch["input_ids"].tolist() == [[5, 5, 5]]
    assert batch["labels"].tolist() == [[-100, -100, -100]]
    assert kept[5]["labels"].tolist() == [5, 5, 5]


@pytest.mark.parametrize("offset", [0, 7, -3])
def test_an_offset_moves_every_sample(offset):
    assert counted(StepRows(Numbers(), 1, 2, offset)[4, 6]) == ([7 + offset, 8 + offset, 9 + offset], 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_steps_in_order_and_ends_with_them(workers):
    schedule = BatchSchedule(sequence_length=3, increment=2, full_tokens=36, start_tokens=6, ramp_tokens=120)
    state = torch.get_rng_state()
    loader = StepLoader(StepRows(Numbers(), 0, 2), num_workers=workers)
    steps = list(islice(schedule.steps(9), 12))
    batches = [counted(batch)[0] for batch in loader.batches(iter(steps))]
    assert batches == [list(range(first, first + -(-count // 2))) for first, count in steps]
    assert torch.equal(torch.get_rng_state(), state)  # the model's numbers are drawn from it
    assert list(loader) == []


def test_a_position_comes_back_as_it_was(tmp_path):
    drawn = random.Random(0)
    position = Position(2048, 146_484_375 + drawn.randrange(99), -5, 16, 3_200_000, {"seed": 3, "weights": {"a": 0.1}})
    position.nonfinite_steps, position.rollbacks = [4, 9], 1
    position.save(tmp_path)
    assert Position.load(tmp_path) == position
    assert position.tokens_seen == position.sequences_seen * 2048


def test_a_position_that_is_not_there_or_not_understood(tmp_path):
    assert Position.load(tmp_path) is None
    for text in ("{", '{"sequence_length": 8, "parsecs_seen": 3}', "{}", "[]"):
        (tmp_path / POSITION_FILE).write_text(text)
        with pytest.raises(ValueError, match="is not a position that this version wrote"):
            Position.load(tmp_path)


# Steps of a real run

STEP = 8 * 32
RAMP = {
    "batch_size_tokens": STEP, "batch_ramp_start_tokens": 64, "batch_ramp_tokens": 3 * STEP,
    "batch_increment_tokens": 32,
}  # fmt: skip


def run(corpus, folder, **fields):
    """A run in this process: its losses, final weights, and the trainer."""
    trainers = []

    class Kept(PretrainingTrainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            trainers.append(self)

    fields = {
        "per_device_train_batch_size": 8, "train_tokens": 10 * STEP, "warmup_tokens": 2 * STEP, "decay_tokens": 9 * STEP,
        "eval_strategy": "no", "save_strategy": "no", **fields,
    }  # fmt: skip
    argv = pretrain_arguments(corpus, folder, **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "PretrainingTrainer", Kept)
        pretraining.pretrain(*parse_arguments(PretrainConfig, PretrainingArguments, argv=argv))
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return losses, load_file(folder / "model.safetensors"), trainers[0]


def distance(a, b):
    """The largest difference between two runs' losses and weights."""
    assert len(a[0]) == len(b[0]) and a[1].keys() == b[1].keys()
    losses = max(abs(x - y) for x, y in zip(a[0], b[0]))
    return losses, max((a[1][name] - b[1][name]).abs().max().item() for name in a[1])


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A run whose steps are one micro-batch each."""
    return run(corpus, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def ramped(corpus, tmp_path_factory):
    """One with a growing batch."""
    return run(corpus, tmp_path_factory.mktemp("ramped"), **RAMP)


def bare_loop(corpus, trainer, batches):
    """The same training in plain PyTorch: what a reader of the paper would write."""
    model = AutoModelForCausalLM.from_config(trainer.model.config, attn_implementation="sdpa").train()
    model.load_state_dict(trainer.first_weights)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=True,
    )  # fmt: skip
    data, losses, seen = PackedDataset(corpus, 32, 10_000, seed=42), [], 0
    for size in batches:
        ids = torch.stack([data[index]["input_ids"] for index in range(seen, seen + size)])
        seen += size
        tokens = seen * 32
        if tokens < 2 * STEP:
            factor = tokens / (2 * STEP)
        else:
            turn = min((tokens - 2 * STEP) / (7 * STEP), 1.0)
            factor = 0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * turn, dtype=torch.float64)).item())
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * factor
        logits = model(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in model.named_parameters()}, None


def test_a_run_is_what_a_plain_loop_does(corpus, whole):
    losses, weights = distance(whole, bare_loop(corpus, whole[2], [8] * 10))
    assert losses < 2e-6 and weights < 2e-5


def test_so_is_a_run_with_a_growing_batch(corpus, ramped):
    """Linear in tokens from 2 to 8 sequences over 24, to the nearest whole one, by hand."""
    sizes, seen = [], 0
    while seen < 80:
        sizes.append(8 if seen >= 24 else int(2 + 6 * seen / 24 + 0.5))
        seen += sizes[-1]
    assert sizes[:7] == [2, 3, 3, 4, 5, 6, 8]
    logged = [e for e in ramped[2].state.log_history if "loss" in e]
    assert [e["batch_tokens"] for e in logged] == [32 * size for size in sizes]
    assert [e["tokens"] for e in logged] == [32 * sum(sizes[: n + 1]) for n in range(len(sizes))]
    losses, weights = distance(ramped, bare_loop(corpus, ramped[2], sizes))
    assert losses < 2e-6 and weights < 2e-5


@pytest.mark.parametrize("micro", [1, 3])
def test_accumulation_does_not_change_losses_or_weights(corpus, tmp_path, whole, micro):
    other = run(
        corpus, tmp_path, per_device_train_batch_size=micro, batch_size_tokens=STEP, batch_increment_tokens=STEP
    )
    losses, weights = distance(whole, other)
    assert losses < 2e-6 and weights < 2e-5


def test_accumulation_as_transformers_spells_it(corpus, tmp_path, whole):
    losses, weights = distance(
        whole, run(corpus, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    )
    assert losses < 2e-6 and weights < 2e-5


def test_accumulation_does_not_change_a_growing_batch(corpus, tmp_path, ramped):
    losses, weights = distance(ramped, run(corpus, tmp_path, per_device_train_batch_size=3, **RAMP))
    assert losses < 2e-6 and weights < 2e-5


def test_a_step_is_divided_into_micro_batches_the_last_being_what_is_left(corpus, tmp_path, monkeypatch):
    parts, forward = [], Trainer.training_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        parts.append((self.state.global_step, len(inputs["input_ids"]), num_items_in_batch))
        assert self.accelerator.sync_gradients == (sum(size for step, size, _ in parts if step == parts[-1][0]) == 8)
        return forward(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    fields = {"batch_size_tokens": STEP, "batch_increment_tokens": 32, "train_tokens": 2 * STEP}
    run(corpus, tmp_path, per_device_train_batch_size=3, decay_tokens=3 * STEP, **{**fields, "warmup_tokens": STEP})
    assert parts == [(step, size, 8 * 31) for step in (0, 1) for size in (3, 3, 2)]


def test_loader_workers_change_nothing(corpus, tmp_path, ramped):
    assert distance(ramped, run(corpus, tmp_path, dataloader_num_workers=2, **RAMP)) == (0, 0)


def test_weight_decay_is_on_matrices_and_on_nothing_else(whole):
    trainer = whole[2]
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = {g["weight_decay"]: [names[id(p)] for p in g["params"]] for g in trainer.optimizer.param_groups}
    assert set(groups) == {0.1, 0.0}
    layers = [f"model.layers.{n}." for n in range(2)]
    matrices = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    norms = ["input_layernorm", "post_attention_layernorm"]
    assert set(groups[0.1]) == {"model.embed_tokens.weight", "model.embed_positions.weight"} | {
        f"{layer}{matrix}.weight" for layer in layers for matrix in matrices
    }
    assert set(groups[0.0]) == {"model.norm.weight", "model.norm.bias"} | {
        f"{layer}{name}" for layer in layers for name in
        [*(f"{m}.bias" for m in matrices), *(f"{n}.{part}" for n in norms for part in ("weight", "bias"))]
    }  # fmt: skip
    assert len(names) == len(groups[0.1]) + len(groups[0.0])

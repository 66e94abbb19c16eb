"""The same steps on one process, on two under DDP and under ZeRO-3, and on 2, 1 and 2 of them in turn.

Rows that are no multiple of the processes, a growing batch, micro-batches that do not divide a process' rows.
"""

import importlib.util
import json

import pytest
from helpers import pretrain_arguments, run
from recorded_runs import recorded_run
from safetensors.torch import load_file

from hfgpt.data.packing import PackedDataset


LENGTH = 32
# From 2 sequences to 7 over 30: on two processes a step of an odd number has an idle row.
SIZES = [2, 2, 3, 3, 4, 4, 5, 6, 7, 7, 7]
FIELDS = {
    "batch_size_tokens": 7 * LENGTH, "batch_ramp_start_tokens": 2 * LENGTH, "batch_ramp_tokens": 30 * LENGTH,
    "batch_increment_tokens": LENGTH, "train_tokens": sum(SIZES) * LENGTH, "warmup_tokens": 8 * LENGTH,
    "decay_tokens": 40 * LENGTH, "per_device_train_batch_size": 2, "weight_decay": 5.0, "learning_rate": 3e-3,
    "save_strategy": "no", "eval_strategy": "no", "eval_on_start": "false",
}  # fmt: skip
SAVING = {**FIELDS, "save_strategy": "steps", "save_steps": 100}
# What adding up in another order does. Measured: 5e-7 in losses; 1e-7 in weights, but 3e-6 in the biases of the keys,
# whose gradients are zero but for noise, which Adam makes larger.
LOSS_NOISE, WEIGHT_NOISE = 2e-6, 2e-5
DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the package deepspeed")


def launch_runs(config, folder, *runs):
    """Each (name, output folder, signal_at, fields), on two processes; the records of both."""
    folder.mkdir()
    plan = [{"name": name, "arguments": arguments, "signal_at": signal_at} for name, arguments, signal_at in runs]
    (folder / "runs.json").write_text(json.dumps(plan))
    run(
        "-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{config}.yaml", "--num_processes", "2",
        "--main_process_port", "0", "tests/distributed/recorded_runs.py", folder,
    )  # fmt: skip
    return {
        name: [json.loads((folder / f"{name}.rank{rank}.json").read_text()) for rank in range(2)]
        for name, _, _ in runs
    }


def arguments(corpus, folder, **fields):
    return pretrain_arguments(corpus, folder, use_cpu="false", **fields)


def history(folder, name):
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in entries if name in entry}


def rows_of(records):
    """The rows of each step, in the order of the processes."""
    steps = sorted(map(int, records[0]["rows"]))
    return {step: [row for record in records for row in record["rows"][str(step)]] for step in steps}


def assert_near(a, b):
    """Two runs' losses of each step, and their final weights."""
    losses = (history(a, "loss"), history(b, "loss"))
    assert losses[0] == pytest.approx(losses[1], abs=LOSS_NOISE, rel=0)
    weights = (load_file(a / "model.safetensors"), load_file(b / "model.safetensors"))
    differ = {name: (weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]}
    assert max(differ.values()) < WEIGHT_NOISE, differ


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(corpus, root):
    """The run on one process, in this one."""
    record = recorded_run(pretrain_arguments(corpus, root / "alone", **FIELDS))
    return record["rows"], record


@pytest.fixture(scope="module")
def ddp(corpus, root):
    """On two: the whole run, with other micro-batches, and one that a process is told to stop in its third step."""
    return launch_runs(
        "ddp",
        root / "ddp-records",
        ("whole", arguments(corpus, root / "ddp", **FIELDS), None),
        ("rows", arguments(corpus, root / "rows", **{**FIELDS, "per_device_train_batch_size": 3}), None),
        ("stopped", arguments(corpus, root / "stopped", **SAVING), 3),
    )


@pytest.fixture(scope="module")
def zero3(corpus, root):
    """On two under ZeRO-3: the whole run; one that is stopped, and goes on."""
    return launch_runs(
        "zero3",
        root / "zero3-records",
        ("whole", arguments(corpus, root / "zero3", **FIELDS), None),
        ("stopped", arguments(corpus, root / "zero3-stopped", **SAVING), 5),
        ("resumed", arguments(corpus, root / "zero3-stopped", **SAVING), None),
    )


def assert_the_order(corpus, rows):
    data = PackedDataset(corpus, LENGTH, 1000, seed=42)
    assert [len(rows[step]) for step in sorted(rows)] == SIZES
    flat = [row for step in sorted(rows) for row in rows[step]]
    assert flat == [data[index]["input_ids"].tolist() for index in range(sum(SIZES))]


def assert_the_schedule(folder):
    assert history(folder, "batch_tokens") == {step: LENGTH * size for step, size in enumerate(SIZES, 1)}
    assert history(folder, "tokens") == {step: LENGTH * sum(SIZES[:step]) for step in range(1, len(SIZES) + 1)}


def test_one_process_takes_the_steps_of_the_schedule(corpus, root, alone):
    assert_the_order(corpus, alone[0])
    assert_the_schedule(root / "alone")


@pytest.mark.parametrize("name", ["whole", "rows"])
def test_two_processes_read_the_same_in_the_same_steps(corpus, root, ddp, name):
    records = ddp[name]
    assert_the_order(corpus, rows_of(records))
    assert_the_schedule(root / {"whole": "ddp", "rows": "rows"}[name])
    idle = [sum(record["idle"][str(step)] for record in records) for step in range(1, len(SIZES) + 1)]
    assert idle == [size % 2 for size in SIZES]


@pytest.mark.parametrize("name", ["ddp", "rows"])
def test_two_processes_train_as_one_with_idle_rows(root, alone, ddp, name):
    assert_near(root / name, root / "alone")
    assert history(root / name, "learning_rate") == history(root / "alone", "learning_rate")


def test_from_two_processes_to_one_and_back(corpus, root, alone, ddp):
    """No sample is left out or read again, no step has another batch."""
    first = ddp["stopped"]
    assert all("SIGTERM after step 4" in record["interrupted"] for record in first)
    second = recorded_run(pretrain_arguments(corpus, root / "stopped", **SAVING), signal_at=6)
    assert "SIGTERM after step 7" in second["interrupted"]
    third = launch_runs("ddp", root / "third", ("third", arguments(corpus, root / "stopped", **SAVING), None))["third"]
    rows = [rows_of(first), second["rows"], rows_of(third)]
    assert [list(part) for part in rows] == [[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11]]
    assert rows[0] | rows[1] | rows[2] == alone[0]
    assert_the_schedule(root / "stopped")
    assert history(root / "stopped", "learning_rate") == history(root / "alone", "learning_rate")
    assert_near(root / "stopped", root / "alone")


@DEEPSPEED
def test_zero3_takes_the_same_steps(corpus, root, alone, zero3):
    assert rows_of(zero3["whole"]) == alone[0]
    assert_the_schedule(root / "zero3")
    assert history(root / "zero3", "learning_rate") == history(root / "alone", "learning_rate")


@DEEPSPEED
def test_zero3_trains_as_one_process(root, alone, zero3):
    assert_near(root / "zero3", root / "alone")


@DEEPSPEED
def test_zero3_goes_on_in_a_ramp_as_if_nothing_had_been(root, alone, zero3):
    assert all("SIGTERM after step 6" in record["interrupted"] for record in zero3["stopped"])
    assert rows_of(zero3["stopped"]) | rows_of(zero3["resumed"]) == alone[0]
    assert_the_schedule(root / "zero3-stopped")
    assert history(root / "zero3-stopped", "loss") == history(root / "zero3", "loss")
    a, b = (load_file(root / name / "model.safetensors") for name in ("zero3-stopped", "zero3"))
    assert all(a[name].equal(b[name]) for name in a)


@DEEPSPEED
def test_zero3_decays_matrices_and_nothing_else(alone, zero3):
    (_, record), both = alone, zero3["whole"]
    matrices = {
        name: 5.0 if "norm" not in name and name.endswith("weight") else 0.0 for name in record["weight_decay"]
    }
    assert record["weight_decay"] == matrices
    assert [record["weight_decay"] for record in both] == [matrices] * 2

"""What a run in two processes survives, under DDP, DeepSpeed and FSDP: all agree, none waits for ever, nothing is lost."""

import importlib.util
import json
import random
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from fault_tools import (
    DROPOUT,
    RAMP,
    Run,
    at_call,
    at_steps,
    disk_full_for,
    flip_a_bit,
    history,
    leftovers,
    losses,
    nonfinite,
    pass_over_data,
    position,
    same_weights,
    send,
    send_to_parent,
    steps_saved,
    weights,
    with_faults,
)
from helpers import ROOT, launch, pretrain_arguments


LAST = 11
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the package deepspeed"
)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in two processes with a batch that grows; checkpoints at steps 4, 8 and 11."""
    return Run(corpus, tmp_path_factory.mktemp("runs") / "ddp", processes=2).finish().output_dir


@pytest.fixture(scope="module")
def random_draws(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with dropout, other in each process."""
    folder = tmp_path_factory.mktemp("runs") / "dropout"
    return Run(corpus, folder, processes=2, model_overrides=DROPOUT).finish().output_dir


@pytest.fixture
def go(corpus, tmp_path):
    return partial(Run, corpus, tmp_path / "run", processes=2)


def check_equal(folder, undisturbed):
    assert same_weights(folder, undisturbed)
    assert losses(folder) == losses(undisturbed)
    assert leftovers(folder) == []


# DDP


@pytest.mark.parametrize(
    "ranks", [pytest.param([0], marks=pytest.mark.slow), [1], pytest.param([0, 1], marks=pytest.mark.slow)]
)
def test_a_signal_to_any_process_stops_all_at_the_same_step(go, random_draws, ranks):
    go = partial(go, model_overrides=DROPOUT)
    run = go(partial(at_steps, [2], partial(send, "SIGTERM"), ranks))
    assert run.wait() == [75, 75], run.text
    told = json.loads((run.output_dir / "interrupted.json").read_text())
    assert told["signal"] == "SIGTERM" and told["saved"] and told["step"] in (2, 3)
    assert steps_saved(run.output_dir) == [told["step"]]
    check_equal(go().finish().output_dir, random_draws)


def test_a_process_that_dies_ends_the_others_and_the_same_command_resumes(go, random_draws):
    go = partial(go, model_overrides=DROPOUT)
    run = go(partial(at_steps, [6], partial(send, "SIGKILL"), [1]))
    dead_or_done = run.wait(60)
    assert dead_or_done[1] == -signal.SIGKILL
    assert dead_or_done[0] not in (None, 0), run.text
    assert steps_saved(run.output_dir) == [4]
    run = go(partial(at_call, "transformers.Trainer._save_rng_state", [1], "SIGKILL", [1]))
    assert run.wait(60)[0] not in (None, 0), run.text
    assert steps_saved(run.output_dir) == [4]
    check_equal(go().finish().output_dir, random_draws)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            partial(at_call, "transformers.modeling_utils.safe_save_file", [2], "full", [0]), marks=pytest.mark.slow
        ),
        partial(at_call, "transformers.Trainer._save_rng_state", [2], "full", [1]),
        partial(disk_full_for, "hfgpt.manifest.hash_file", "checkpoint-8", [1]),
        pytest.param(partial(at_call, "hfgpt.training.checkpoints.publish", [2], "full", [0]), marks=pytest.mark.slow),
    ],
    ids=["weights", "random state", "hashes", "name"],
)
def test_where_one_process_cannot_write_all_go_on(go, undisturbed, fault):
    run = go(fault).finish()
    assert "Checkpoint checkpoint-8 was not saved at step 8" in run.text
    assert steps_saved(run.output_dir) == [4, LAST], run.text
    assert same_weights(run.output_dir, undisturbed)
    assert leftovers(run.output_dir) == []


def test_what_is_damaged_in_one_process_share_is_seen_by_all(go, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("all_results.json"))
    for name, step in (("rng_state_1.pth", LAST), ("rng_state_0.pth", 8)):
        flip_a_bit(tmp_path / "run" / f"checkpoint-{step}" / name)
    run = go().finish()
    assert f"checkpoint-{LAST} is not complete (rng_state_1.pth is not what was written)" in run.text
    assert "checkpoint-8 is not complete (rng_state_0.pth is not what was written)" in run.text
    check_equal(run.output_dir, undisturbed)


@pytest.mark.parametrize("what", [pytest.param("gradients", marks=pytest.mark.slow), "loss", "value"])
def test_a_step_that_fails_in_one_process_is_tried_again_by_all(go, undisturbed, what):
    run = go(partial(nonfinite, steps=[5], times=1, what=what, ranks=[1])).finish()
    assert run.text.count("Once more.") == 1
    check_equal(run.output_dir, undisturbed)


def check_rollback(go, undisturbed, tmp_path):
    """Data fails in whichever process has it: skipped by both, and passed over by both, from checkpoint-8 on."""
    ends = [entry["tokens"] // 32 for entry in history(undisturbed) if "batch_tokens" in entry]
    run = go(partial(nonfinite, samples=[ends[8] - 1, ends[9] - 1]), rollback_after=2).finish()
    passed = ends[9] - ends[7]
    assert f"Step 10: back to checkpoint-8; {passed} sequences since are passed over" in run.text
    assert position(run.output_dir)["sequences_skipped"] == passed
    assert position(run.output_dir)["nonfinite_steps"] == [9, 10]
    assert history(run.output_dir)[-1]["tokens"] == RAMP["train_tokens"]
    assert same_weights(run.output_dir / "checkpoint-8", undisturbed / "checkpoint-8")
    # The same course as of a run that never knew what was passed over.
    shutil.rmtree(run.output_dir / f"checkpoint-{LAST}")
    (run.output_dir / "all_results.json").unlink()
    pass_over_data(run.output_dir / "checkpoint-8", passed)
    final = weights(run.output_dir)
    again = go().finish()
    assert re.search(r"Resuming from \S*checkpoint-8:", again.text)
    assert all(torch.equal(tensor, final[name]) for name, tensor in weights(again.output_dir).items())


@pytest.mark.slow
def test_a_rollback_in_two_processes(go, undisturbed, tmp_path):
    check_rollback(go, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_many_random_moments(corpus, tmp_path, random_draws, seed):
    """One process or both, in steps and in saves; the same command again, until it is done."""
    chosen = random.Random(seed)
    slow_steps = partial(at_steps, range(1, 12), partial(time.sleep, 0.05))
    fields = {"save_steps": 1, "save_total_limit": 2, "model_overrides": DROPOUT}
    killed = 0
    for _ in range(8):
        run = Run(corpus, tmp_path / "run", slow_steps, processes=2, **fields)
        time.sleep(chosen.uniform(0.5, 4.0))
        run.signal(signal.SIGKILL, chosen.choice([[0], [1], [0, 1]]))
        codes = run.wait(60)
        assert None not in codes, run.text
        killed += -signal.SIGKILL in codes
    check_equal(Run(corpus, tmp_path / "run", processes=2, **fields).finish().output_dir, random_draws)
    assert killed > 2


def launched(corpus, folder, *faults):
    """The run by `accelerate launch`, to its end."""
    options = ["--main_process_port", "0", "tests/fault_tools.py", *pretrain_arguments(corpus, folder, **RAMP)]
    return launch(*options, config="recipes/accelerate/cpu-ddp.yaml", check=False, **with_faults(*faults))


@pytest.mark.slow
def test_the_launcher_of_a_process_that_dies_ends_and_says_so(corpus, tmp_path, undisturbed):
    done = launched(corpus, tmp_path / "run", partial(at_steps, [6], partial(send, "SIGKILL"), [1]))
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert not (tmp_path / "run" / "interrupted.json").exists()
    assert steps_saved(tmp_path / "run") == [4]
    check_equal(Run(corpus, tmp_path / "run", processes=2).finish().output_dir, undisturbed)


@pytest.mark.slow
def test_a_launcher_that_is_told_to_stop_lets_its_processes_save(corpus, tmp_path, undisturbed):
    """It passes the signal on, and gives them 30 s; that they have saved is told by interrupted.json."""
    done = launched(corpus, tmp_path / "run", partial(at_steps, [6], partial(send_to_parent, "SIGTERM"), [0]))
    assert done.returncode != 0
    told = json.loads((tmp_path / "run" / "interrupted.json").read_text())
    assert told["signal"] == "SIGTERM" and told["saved"]
    assert steps_saved(tmp_path / "run") == [4, told["step"]]
    check_equal(Run(corpus, tmp_path / "run", processes=2).finish().output_dir, undisturbed)


# DeepSpeed and FSDP

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT3DecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ENGINE = "deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine.TorchCheckpointEngine"
# What a process writes beside the others, its first call, and the process that fails in it.
PARTS = {"fsdp2": ("torch.save", 2, 0), "zero1": (f"{ENGINE}.save", 1, 1), "zero2": (f"{ENGINE}.save", 1, 1),
         "zero3": (f"{ENGINE}.makedirs", 1, 0)}  # fmt: skip


def sharded(corpus, folder, config, **fields):
    """A run with the shipped config of that name."""
    variables = FSDP2
    if config.startswith("zero"):
        variables = {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": f"ds_configs/{config}.json",
            "DS_ACCELERATOR": "cpu",
        }
    return partial(Run, corpus, folder, processes=2, environment=variables, use_cpu="false", **fields)


def needs(config, *marks):
    missing = config.startswith("zero") and importlib.util.find_spec("deepspeed") is None
    return pytest.param(config, marks=[*marks, pytest.mark.skipif(missing, reason="needs the package deepspeed")])


@pytest.fixture(
    scope="module",
    params=[
        needs("zero1", pytest.mark.slow),
        needs("zero2", pytest.mark.slow),
        needs("zero3"),
        needs("fsdp2", pytest.mark.slow),
    ],
)
def whole(request, corpus, tmp_path_factory):
    """The name of a config, and the folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    return request.param, sharded(corpus, folder, request.param)().finish().output_dir


def test_where_weights_are_sharded_the_faults_of_one_process_change_nothing(whole, corpus, tmp_path):
    """One cannot write its part of the first checkpoint; the second fails in a step once, and is told to stop."""
    config, undisturbed = whole
    go = sharded(corpus, tmp_path / "run", config)
    part, call, rank = PARTS[config]
    run = go(
        partial(at_call, part, [call], "full", [rank]),
        partial(nonfinite, steps=[6], times=1, ranks=[1]),
        partial(at_steps, [9], partial(send, "SIGTERM"), [1]),
    )
    assert run.wait() == [75, 75], run.text
    assert "Checkpoint checkpoint-4 was not saved at step 4: OSError" in run.text
    assert run.text.count("Once more.") == 1
    step = json.loads((run.output_dir / "interrupted.json").read_text())["step"]
    assert step in (9, 10) and steps_saved(run.output_dir) == [8, step]
    run = go().finish()
    assert f"checkpoint-{step}:" in run.text
    check_equal(run.output_dir, undisturbed)


@pytest.mark.slow
def test_a_rollback_where_weights_are_sharded(whole, corpus, tmp_path):
    config, undisturbed = whole
    check_rollback(sharded(corpus, tmp_path / "run", config), undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the package deepspeed")
@pytest.mark.parametrize("stage", [1, 2])
def test_a_skipped_step_leaves_nothing_in_deepspeed_sums(corpus, tmp_path, stage):
    """With sums in float32 and an optimizer in memory of the host it keeps what was not finite, unless told."""
    plan = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    plan["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    plan.update(zero_force_ds_cpu_optimizer=False, data_types={"grad_accum_dtype": "fp32"})
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    variables = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "plan.json"),
        "DS_ACCELERATOR": "cpu",
    }
    go = partial(Run, corpus, processes=2, environment=variables, use_cpu="false", bf16="true")
    one = go(tmp_path / "one").finish()
    two = go(tmp_path / "two", partial(nonfinite, steps=[5], times=1, ranks=[1])).finish()
    assert two.text.count("Once more.") == 1 and "Skipped" not in two.text
    assert losses(two.output_dir) == losses(one.output_dir)
    assert same_weights(two.output_dir, one.output_dir)

"""What a run in one process survives, and that it ends with the weights of an undisturbed run, bit for bit."""

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
    NOT_ALLOWED,
    RAMP,
    Run,
    at_call,
    at_steps,
    fill_up,
    flip_a_bit,
    history,
    kill_in_deletion,
    leftovers,
    limit_files,
    losses,
    nonfinite,
    pass_over_data,
    position,
    same_weights,
    send,
    small_file_system,
    steps_saved,
    weights,
)


LAST = 11  # step
WRITES = {
    "weights": "transformers.modeling_utils.safe_save_file",
    "optimizer": "transformers.Trainer._save_optimizer_and_scheduler",
    "random state": "transformers.Trainer._save_rng_state",
    "state": "transformers.trainer_callback.TrainerState.save_to_json",
    "position": "hfgpt.training.steps.Position.save",
    "manifest": "hfgpt.training.checkpoints.write_manifest",
    "name": "hfgpt.training.checkpoints.publish",
}


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with dropout and a batch that grows; checkpoints at steps 4, 8 and 11."""
    return Run(corpus, tmp_path_factory.mktemp("runs") / "undisturbed", model_overrides=DROPOUT).finish().output_dir


@pytest.fixture
def go(corpus, tmp_path):
    """Start the same run once more, in the same folder."""
    return partial(Run, corpus, tmp_path / "run", model_overrides=DROPOUT)


def check_equal(folder, undisturbed):
    assert same_weights(folder, undisturbed)
    assert losses(folder) == losses(undisturbed)  # to the last digit, across the steps where the batch grows
    last = f"checkpoint-{LAST}"
    for name in ("optimizer.pt", "rng_state.pth"):
        a, b = (torch.load(run / last / name, weights_only=False) for run in (folder, undisturbed))
        assert str(a) == str(b)
    assert leftovers(folder) == []


def test_the_batch_of_these_runs_grows(undisturbed):
    batches = [entry["batch_tokens"] // 32 for entry in history(undisturbed) if "batch_tokens" in entry]
    assert batches[0] == 2 and batches[-1] == 6
    assert steps_saved(undisturbed) == [4, 8, LAST]
    tokens = {entry["step"]: entry["tokens"] for entry in history(undisturbed) if "batch_tokens" in entry}
    assert tokens[LAST] == RAMP["train_tokens"]


# Killed


@pytest.mark.parametrize("what", ["weights", "optimizer", "manifest", "name"])
def test_killed_in_a_save_it_goes_on_from_the_checkpoint_before(go, undisturbed, what):
    """What the second save had written is neither taken nor kept."""
    run = go(partial(at_call, WRITES[what], [2], "SIGKILL"))
    assert run.wait() == [-signal.SIGKILL]
    assert steps_saved(run.output_dir) == [4]
    assert leftovers(run.output_dir) == ["incomplete-checkpoint-8"]
    run = go().finish()
    assert re.search(r"Resuming from \S*checkpoint-4:", run.text)
    assert steps_saved(run.output_dir) == [4, 8, LAST]
    check_equal(run.output_dir, undisturbed)


def kill_at_random(go, undisturbed, seed, kills, longest):
    chosen = random.Random(seed)
    killed = 0
    for _ in range(kills):
        run = go()
        time.sleep(chosen.uniform(0.2, longest))
        run.signal(signal.SIGKILL)
        killed += run.wait() == [-signal.SIGKILL]
        for step in steps_saved(run.output_dir):
            assert (run.output_dir / f"checkpoint-{step}" / "manifest.json").exists()
    run = go().finish()
    check_equal(run.output_dir, undisturbed)
    return killed


def test_killed_at_random_moments(corpus, tmp_path, undisturbed):
    go = partial(Run, corpus, tmp_path / "run", model_overrides=DROPOUT, save_steps=1)
    kill_at_random(go, undisturbed, seed=0, kills=3, longest=1.2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_many_random_moments(corpus, tmp_path, undisturbed, seed):
    go = partial(
        Run, corpus, tmp_path / "run", partial(at_steps, range(1, 12), partial(time.sleep, 0.03)),
        model_overrides=DROPOUT, save_steps=1, save_total_limit=2,
    )  # fmt: skip
    assert kill_at_random(go, undisturbed, seed=seed, kills=12, longest=2.0) > 3


# Told to stop


def check_stopped(run, signal_name, step):
    assert run.wait() == [75], run.text
    told = json.loads((run.output_dir / "interrupted.json").read_text())
    assert told == {"signal": signal_name, "step": step, "saved": True}
    assert steps_saved(run.output_dir)[-1] == step
    assert leftovers(run.output_dir) == []
    assert "The same command again resumes" in run.text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_told_to_stop_it_saves_at_the_step_boundary_and_the_same_command_resumes(go, undisturbed, name):
    """The signal comes in step 2, so all processes know of it at the end of step 3 at the latest."""
    run = go(partial(at_steps, [2], partial(send, name)))
    check_stopped(run, name, 3)
    run = go().finish()
    assert "checkpoint-3:" in run.text
    assert not (run.output_dir / "interrupted.json").exists()
    check_equal(run.output_dir, undisturbed)


def test_told_to_stop_in_a_save_and_in_an_evaluation_and_twice(go, undisturbed):
    """Each time the step after it is the last, and is saved."""
    run = go(partial(at_call, WRITES["optimizer"], [1], "SIGTERM"))
    check_stopped(run, "SIGTERM", 5)
    evaluate = "hfgpt.training.trainer.PretrainingTrainer.evaluate"
    run = go(partial(at_call, evaluate, [1], "SIGUSR1"), eval_strategy="steps", eval_steps=6)
    check_stopped(run, "SIGUSR1", 7)
    run = go(partial(at_steps, [9], partial(send, "SIGTERM")), partial(at_call, WRITES["weights"], [2], "SIGTERM"))
    check_stopped(run, "SIGTERM", 10)
    run = go().finish()
    check_equal(run.output_dir, undisturbed)


def test_told_to_stop_before_the_first_step_and_in_the_last(go, undisturbed):
    run = go(partial(at_call, "transformers.Trainer._prepare_for_training", [1], "SIGTERM"))
    check_stopped(run, "SIGTERM", 1)
    run = go(partial(at_steps, [LAST - 1], partial(send, "SIGTERM")))
    check_stopped(run, "SIGTERM", LAST)
    run = go().finish()
    assert (run.output_dir / "all_results.json").exists()
    check_equal(run.output_dir, undisturbed)


@pytest.mark.parametrize("moment", ["transformers.Trainer._finalize_training", "transformers.Trainer.save_model"])
def test_a_signal_after_the_last_step_loses_nothing(go, undisturbed, moment):
    """What is left to do is done at once, or by the same command again."""
    number = 1 if "finalize" in moment else 4  # after those of three checkpoints
    run = go(partial(at_call, moment, [number], "SIGTERM"))
    assert run.wait()[0] in (0, -signal.SIGTERM)
    run = go().finish()
    check_equal(run.output_dir, undisturbed)


def test_a_signal_before_training_ends_the_process_and_nothing_is_written(go):
    run = go(partial(at_call, "transformers.AutoModelForCausalLM.from_config", [1], "SIGTERM"))
    assert run.wait() == [-signal.SIGTERM]
    assert [path.name for path in run.output_dir.iterdir()] == [".lock"]


# Damaged on disk


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        flip_a_bit(file)


@pytest.mark.parametrize(("name", "how"), [("optimizer.pt", "flipped"), ("data_position.json", "truncated")])
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_is_used(go, undisturbed, tmp_path, name, how):
    shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns("all_results.json", "*.png"))
    damage(tmp_path / "run" / f"checkpoint-{LAST}" / name, how)
    (tmp_path / "run" / "checkpoint-8" / name).unlink()
    run = go().finish()
    assert re.search(rf"checkpoint-{LAST} is not complete \({name} (is not what was written|has \d+ bytes)", run.text)
    assert f"checkpoint-8 is not complete ({name} is missing)" in run.text
    assert re.search(r"Resuming from \S*checkpoint-4:", run.text)
    check_equal(run.output_dir, undisturbed)
    assert steps_saved(run.output_dir) == [4, 8, LAST]


def test_where_no_checkpoint_is_whole_the_run_does_not_begin_anew_by_itself(go, undisturbed, tmp_path):
    for step in (4, 8):
        shutil.copytree(undisturbed / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
        damage(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors", "truncated")
    run = go()
    assert run.wait() == [1]
    assert "None of the checkpoints in" in run.text and "`resume_from_checkpoint: false`" in run.text
    assert steps_saved(run.output_dir) == [4, 8]
    run = go(resume_from_checkpoint="false").finish()
    check_equal(run.output_dir, undisturbed)


def test_a_named_checkpoint_is_the_one_to_resume_from(go, undisturbed, tmp_path):
    named = undisturbed / "checkpoint-4"
    run = go(resume_from_checkpoint=named).finish()
    assert f"Resuming from {named}:" in run.text
    check_equal(run.output_dir, undisturbed)
    shutil.copytree(named, tmp_path / "copy" / "checkpoint-4")
    damage(tmp_path / "copy" / "checkpoint-4" / "rng_state.pth", "flipped")
    run = go(resume_from_checkpoint=tmp_path / "copy" / "checkpoint-4")
    assert run.wait() == [1]
    assert "is not a whole checkpoint (rng_state.pth is not what was written)" in run.text


# A full disk


SLOW = ("optimizer", "random state", "state")


@pytest.mark.parametrize("what", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in WRITES])
def test_a_save_that_fails_leaves_the_checkpoint_before_and_the_run_goes_on(go, undisturbed, what):
    """Wherever it fails; the next save, when there is room again, is as ever."""
    run = go(partial(at_call, WRITES[what], [2], "full")).finish()
    assert "Checkpoint checkpoint-8 was not saved at step 8" in run.text and "No space left" in run.text
    assert steps_saved(run.output_dir) == [4, LAST]
    check_equal(run.output_dir, undisturbed)


@pytest.mark.parametrize("limit", [200_000, 100_000, 14_000], ids=["optimizer", "weights", "random state"])
def test_a_disk_that_fills_up_and_has_room_again(go, undisturbed, limit):
    """As the kernel tells it: files larger than so many bytes are cut short."""
    run = go(partial(at_steps, [5], partial(limit_files, limit)), partial(at_steps, [10], partial(limit_files, -1)))
    run.finish()
    assert "Checkpoint checkpoint-8 was not saved at step 8" in run.text
    assert steps_saved(run.output_dir) == [4, LAST]
    check_equal(run.output_dir, undisturbed)


def test_a_disk_that_stays_full_ends_with_a_message_and_the_run_can_be_finished_later(go, undisturbed):
    run = go(partial(at_steps, [9], partial(limit_files, 100_000)))
    assert run.wait() == [1]
    assert "The model could not be written" in run.text and "run the same again" in run.text
    assert steps_saved(run.output_dir) == [4, 8]
    assert leftovers(run.output_dir) == []
    run = go().finish()
    check_equal(run.output_dir, undisturbed)


def test_a_small_file_system_really_full(corpus, tmp_path, undisturbed):
    """A file takes up all the room of one from step 5 to step 9."""
    small, filler = tmp_path / "small", tmp_path / "small" / "filler"
    run = Run(
        corpus, small,
        partial(small_file_system, small, 4 * 2**20, tmp_path / "copy"),
        partial(at_steps, [5], partial(fill_up, filler)),
        partial(at_steps, [10], partial(Path.unlink, filler, missing_ok=True)),
        model_overrides=DROPOUT,
    )  # fmt: skip
    codes = run.wait()
    if codes == [NOT_ALLOWED]:
        pytest.skip("file systems cannot be mounted here")
    assert codes == [0], run.text
    assert "Checkpoint checkpoint-8 was not saved at step 8" in run.text and "No space left on device" in run.text
    assert steps_saved(tmp_path / "copy") == [4, LAST]
    check_equal(tmp_path / "copy", undisturbed)


# Not finite


@pytest.fixture(scope="module")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `undisturbed`, without dropout: a step that is tried again is the same."""
    return Run(corpus, tmp_path_factory.mktemp("runs") / "plain").finish().output_dir


@pytest.mark.parametrize("what", ["loss", "gradients", "value"])
def test_a_step_that_fails_once_is_tried_again(corpus, plain, tmp_path, what):
    run = Run(corpus, tmp_path / "run", partial(nonfinite, steps=[5], times=1, what=what)).finish()
    assert "Step 5: the loss or the gradients are not finite" in run.text and "Once more." in run.text
    assert "Skipped" not in run.text
    check_equal(run.output_dir, plain)
    assert position(run.output_dir)["nonfinite_steps"] == []


def test_a_step_that_fails_again_is_skipped_and_counted(corpus, plain, tmp_path):
    """The weights do not change, the schedule goes on; a resumed run knows of it."""
    skip = partial(nonfinite, steps=[5, 7])
    run = Run(corpus, tmp_path / "run", skip, save_steps=1).finish()
    assert run.text.count("Skipped.") == 2
    folder = run.output_dir
    assert same_weights(folder / "checkpoint-5", folder / "checkpoint-4")
    assert not same_weights(folder / "checkpoint-6", folder / "checkpoint-5")
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())
    assert position(folder)["nonfinite_steps"] == [5, 7]
    assert position(folder)["sequences_seen"] * 32 == RAMP["train_tokens"]
    for name in ("learning_rate", "tokens"):
        assert [entry.get(name) for entry in history(folder)] == [entry.get(name) for entry in history(plain)]
    logged = {entry["step"]: entry for entry in history(folder) if "loss" in entry}
    assert [logged[step]["loss"] for step in (5, 7)] == pytest.approx([float("nan")] * 2, nan_ok=True)
    assert [logged[step].get("nonfinite_steps", 0) for step in (4, 5, 6, 7, 11)] == [0, 1, 1, 2, 2]
    losses_before = losses(folder)
    for step in range(7, 12):
        shutil.rmtree(folder / f"checkpoint-{step}")
    (folder / "all_results.json").unlink()
    again = Run(corpus, tmp_path / "run", skip).finish()
    assert position(again.output_dir)["nonfinite_steps"] == [5, 7]
    assert losses(again.output_dir) == pytest.approx(losses_before, nan_ok=True, rel=0, abs=0)


def test_the_loss_logged_is_the_mean_of_the_finite_steps(corpus, plain, tmp_path):
    run = Run(corpus, tmp_path / "run", partial(nonfinite, steps=[5]), logging_steps=5).finish()
    first = [losses(plain)[step] for step in (1, 2, 3, 4)]
    assert losses(run.output_dir)[5] == pytest.approx(sum(first) / 4, rel=1e-6)


def test_too_many_in_a_row_stop_the_run_with_the_last_good_weights_saved(corpus, tmp_path):
    run = Run(corpus, tmp_path / "run", partial(nonfinite, steps=range(6, 12)), max_nonfinite_steps=3, save_steps=5)
    assert run.wait() == [1]
    assert "not finite in 3 steps in a row, the last being 8 (`max_nonfinite_steps`)" in run.text
    assert steps_saved(run.output_dir) == [5, 8]
    assert same_weights(run.output_dir / "checkpoint-8", run.output_dir / "checkpoint-5")
    run = Run(corpus, tmp_path / "run").finish()
    assert "checkpoint-8" in run.text
    assert position(run.output_dir)["nonfinite_steps"] == [6, 7, 8]


def test_after_a_rollback_the_data_is_passed_over_and_the_run_has_all_its_tokens(corpus, plain, tmp_path):
    """Samples that always fail: back to the last checkpoint, and on behind them."""
    # Of the batches 2, 2, 2, 4, 4, 4, 4, 6, ...: sample 12 is in step 5, sample 15 in step 6.
    first = [entry["tokens"] // 32 for entry in history(plain) if "batch_tokens" in entry]
    bad = [first[4] - 1, first[5] - 1]
    fields = {"rollback_after": 2, "save_steps": 2}
    run = Run(corpus, tmp_path / "run", partial(nonfinite, samples=bad), **fields).finish()
    folder = run.output_dir
    passed = first[5] - first[3]
    assert f"Step 6: back to checkpoint-4; {passed} sequences since are passed over" in run.text
    at_end = position(folder)
    assert (at_end["sequences_skipped"], at_end["rollbacks"]) == (passed, 1)
    assert at_end["sequences_seen"] * 32 == RAMP["train_tokens"] == history(folder)[-1]["tokens"]
    assert at_end["nonfinite_steps"] == [5, 6]
    steps = [entry["step"] for entry in history(folder) if "loss" in entry]
    assert steps == list(range(1, LAST + 1))
    assert same_weights(folder / "checkpoint-4", plain / "checkpoint-4")
    # The same course as of a run that never knew what was passed over.
    shutil.copytree(folder / "checkpoint-4", tmp_path / "other" / "checkpoint-4")
    pass_over_data(tmp_path / "other" / "checkpoint-4", passed)
    Run(corpus, tmp_path / "other").finish()
    assert same_weights(folder, tmp_path / "other")


def test_rollbacks_end(corpus, tmp_path):
    """From step 6 on nothing is finite: after three returns to the same checkpoint the run stops."""
    run = Run(corpus, tmp_path / "run", partial(nonfinite, steps=range(6, 12)), rollback_after=2)
    assert run.wait() == [1], run.text
    assert run.text.count("back to checkpoint-4") == 3
    assert "Still not finite after 3 returns to checkpoint-4" in run.text
    assert steps_saved(run.output_dir) == [4, 7]
    assert all(torch.isfinite(tensor).all() for tensor in weights(run.output_dir / "checkpoint-7").values())


def test_a_rollback_leaves_out_damaged_checkpoints_and_those_after_it(corpus, plain, tmp_path):
    """The checkpoint of a failing step is gone, as it is of a course that the run has left."""
    lost = partial(at_steps, [6], partial(Path.unlink, tmp_path / "run" / "checkpoint-4" / "optimizer.pt", True))
    first = [entry["tokens"] // 32 for entry in history(plain) if "batch_tokens" in entry]
    bad = partial(nonfinite, samples=[first[step - 1] - 1 for step in (6, 7, 8)])
    go = partial(Run, corpus, tmp_path / "run", lost, bad, rollback_after=3, save_steps=2)
    run = go(partial(at_call, "hfgpt.training.trainer.PretrainingTrainer._read_from", [2], "SIGKILL"))
    assert run.wait() == [-signal.SIGKILL]
    assert steps_saved(run.output_dir) == [2]
    run = go().finish()
    assert "checkpoint-4 is not complete (optimizer.pt is missing)" in run.text
    assert "back to checkpoint-2" in run.text
    assert steps_saved(run.output_dir) == [2, 4, 6, 8, 10, LAST]
    assert position(run.output_dir)["sequences_seen"] * 32 == RAMP["train_tokens"]


# Rotation


def test_the_last_and_every_so_many_th_are_kept(corpus, plain, tmp_path):
    run = Run(corpus, tmp_path / "run", save_steps=1, save_total_limit=2, keep_every_steps=3).finish()
    assert steps_saved(run.output_dir) == [3, 6, 9, 10, 11]
    check_equal(run.output_dir, plain)


def test_killed_while_a_checkpoint_is_deleted(corpus, plain, tmp_path):
    fields = {"save_steps": 1, "save_total_limit": 1}
    remove_tree = partial(at_call, "hfgpt.training.checkpoints.rotate", [5], "SIGKILL")
    run = Run(corpus, tmp_path / "run", partial(kill_in_deletion, 3), **fields)
    assert run.wait() == [-signal.SIGKILL]
    assert steps_saved(run.output_dir) == [4]
    assert leftovers(run.output_dir) == ["incomplete-deleted-checkpoint-3"]
    run = Run(corpus, tmp_path / "run", remove_tree, **fields)
    assert run.wait() == [-signal.SIGKILL]
    run = Run(corpus, tmp_path / "run", **fields).finish()
    assert steps_saved(run.output_dir) == [LAST]
    check_equal(run.output_dir, plain)

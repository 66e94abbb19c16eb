"""Callbacks that steer a run of any Trainer: steps that are not finite, spikes, early ends, checkpoints that stay."""

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from callback_runs import BadLoss, make_trainer, weights
from transformers import TrainerControl, TrainerState

from hfgpt.training import callbacks
from hfgpt.training.callbacks import CheckpointPruningCallback, LossWatchCallback, MetricStoppingCallback


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(callbacks.logger, "warning", found.append)
    return found


def watched(tmp_path, factors, watch, **fields):
    """A GPT-2 of the Hub in a plain Trainer, whose loss is multiplied at some steps."""
    options = {"compute_loss_func": BadLoss(factors)}
    return make_trainer(tmp_path, [watch] if watch else [], kind="gpt2", options=options, **fields)


def events(folder):
    return [json.loads(line) for line in (folder / "loss_events.jsonl").read_text().splitlines()]


# Steps that are not finite


def test_a_nan_step_that_trainer_takes_and_hides_is_seen_and_skipped(tmp_path, warnings):
    unwatched = watched(tmp_path / "plain", {3: math.nan}, None)
    unwatched.train()
    assert weights(unwatched).isnan().all()
    assert math.isfinite(unwatched.state.log_history[1]["loss"])  # of steps 3 and 4: what the callback is for
    watch = LossWatchCallback()
    trainer = watched(tmp_path / "run", {3: math.nan, 6: math.inf}, watch)
    trainer.train()
    assert trainer.state.global_step == 8 and watch.stop_reason is None
    assert weights(trainer).isfinite().all()
    assert events(tmp_path / "run") == watch.events
    assert [(event["step"], event["event"], event["value"]) for event in watch.events] == [
        (3, "nonfinite", "nan"), (6, "nonfinite", "nan"),
    ]  # fmt: skip
    assert len(warnings) == 2 and warnings[0].startswith("Step 3: ") and warnings[0].endswith("Skipped.")


def trained_weights(*args, **fields):
    trainer = watched(*args, **fields)
    trainer.train()
    return weights(trainer)


def test_a_skipped_step_leaves_the_weights_as_they_were(tmp_path):
    fields = {"lr_scheduler_type": "constant", "eval_strategy": "no"}
    two = trained_weights(tmp_path / "2", {}, None, max_steps=2, **fields)
    three = trained_weights(tmp_path / "3", {3: math.nan}, LossWatchCallback(), max_steps=3, **fields)
    assert torch.equal(two, three)


@pytest.mark.parametrize("fields", [{"max_grad_norm": 0.0}, {"logging_nan_inf_filter": False}])
def test_a_nan_is_told_once_whatever_the_trainer_makes_of_it(tmp_path, warnings, fields):
    """Without clipping; and in a log that stays NaN for good once it was."""
    watch = LossWatchCallback()
    trainer = watched(tmp_path, {3: math.nan}, watch, **fields)
    trainer.train()
    assert [event["step"] for event in watch.events] == [3]
    assert weights(trainer).isfinite().all()
    lines = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert math.isnan(lines[-1]) == ("logging_nan_inf_filter" in fields)


def test_one_bad_micro_batch_takes_its_whole_step_along(tmp_path):
    watch = LossWatchCallback()
    trainer = watched(tmp_path, {4: math.nan}, watch, gradient_accumulation_steps=2)  # the second half of step 2
    trainer.train()
    assert [event["step"] for event in watch.events] == [2]
    assert weights(trainer).isfinite().all()


def test_too_many_in_a_row_end_training_without_a_save(tmp_path, warnings):
    watch = LossWatchCallback(max_nonfinite_steps=2)
    factors = dict.fromkeys((2, 4, 5, 6, 7), math.nan)
    trainer = watched(tmp_path, factors, watch, save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.state.global_step == 5
    assert "2 steps in a row, the last being 5" in watch.stop_reason and warnings[-1].startswith(
        "Training ends at step 5"
    )
    assert watch.events[-1]["event"] == "stop"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (1, 2, 3, 4)
    ]


def test_an_ended_run_is_not_saved_at_its_epoch_either(tmp_path, warnings):
    factors = dict.fromkeys((2, 3, 4, 5), math.nan)
    options = {"save_strategy": "epoch", "eval_strategy": "no", "max_steps": 3}
    trainer = watched(tmp_path, factors, LossWatchCallback("warn", max_nonfinite_steps=2), **options)
    trainer.train()
    assert trainer.state.global_step == 3 and not list(tmp_path.glob("checkpoint-*"))
    watched(tmp_path, {}, LossWatchCallback(), **options).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_warn_only_tells(tmp_path, warnings):
    watch = LossWatchCallback("warn", max_nonfinite_steps=100)
    trainer = watched(tmp_path, {3: math.nan}, watch)
    trainer.train()
    assert weights(trainer).isnan().all()
    assert [event["step"] for event in watch.events] == [3, 4, 5, 6, 7, 8]  # every one since
    assert "Taken all the same" in warnings[0]


def test_a_healthy_run_is_the_same_with_a_watch(tmp_path, warnings):
    watch = LossWatchCallback(metrics=["loss", "grad_norm"])
    assert torch.equal(trained_weights(tmp_path / "plain", {}, None), trained_weights(tmp_path / "watched", {}, watch))
    assert not watch.events and not warnings and not (tmp_path / "watched" / "loss_events.jsonl").exists()


def test_events_that_cannot_be_written_are_a_warning(tmp_path, warnings):
    (tmp_path / "loss_events.jsonl").mkdir()
    watched(tmp_path, {3: math.nan}, LossWatchCallback()).train()
    assert sum("Could not write the loss events" in words for words in warnings) == 1


# Spikes


def feed(watch, values, metric="loss", history=()):
    """Log lines of a run that goes on after `history`; the steps at which a spike was told, and the control."""
    args = SimpleNamespace(output_dir=str(feed.folder), logging_nan_inf_filter=True)
    state, control = TrainerState(log_history=[{"step": 0, metric: value} for value in history]), TrainerControl()
    watch._sees_gradients = True
    watch.on_train_begin(args, state, control)
    for step, value in enumerate(values, start=1):
        state.global_step = step
        watch.on_log(args, state, control, logs={metric: value})
        if control.should_training_stop:
            break
    return [event["step"] for event in watch.events if event["event"] == "spike"], control


@pytest.fixture(autouse=True)
def folder(tmp_path, warnings):
    from accelerate import Accelerator

    Accelerator(cpu=True)
    feed.folder = tmp_path


def noisy(count, start=8.0, end=3.0, noise=0.03):
    chooser = random.Random(0)
    return [end + (start - end) * math.exp(-step / 50) + chooser.gauss(0, noise) for step in range(count)]


def test_a_jump_is_a_spike_and_noise_is_none(tmp_path):
    values = noisy(300)
    assert feed(LossWatchCallback(), values)[0] == []
    assert feed(LossWatchCallback(), noisy(300, 0.5, 0.5, noise=0.2))[0] == []
    values[200] += 0.5
    watch = LossWatchCallback()
    assert feed(watch, values)[0] == [201]
    [event] = watch.events
    assert (
        event["metric"] == "loss"
        and event["value"] == values[200]
        and event["median"] < event["limit"] < event["value"]
    )
    assert feed(LossWatchCallback(spike_deviations=100.0), values)[0] == []


def test_a_new_level_is_told_and_then_taken_for_the_level():
    found, control = feed(LossWatchCallback(window=20), [3.0] * 30 + [5.0] * 40)
    assert found[0] == 31 and 5 < len(found) < 20
    assert not control.should_training_stop


def test_spikes_in_a_row_end_training_where_asked():
    values = [3.0] * 30 + [5.0, 3.0, 5.0, 5.0, 5.0, 5.0]
    watch = LossWatchCallback(spike="stop", max_spikes=3)
    found, control = feed(watch, values)
    assert found == [31, 33, 34, 35] and control.should_training_stop
    assert "3 log lines in a row" in watch.stop_reason


def test_a_resumed_run_knows_the_losses_before():
    assert feed(LossWatchCallback(), [5.0], history=[3.0] * 25)[0] == [1]
    assert feed(LossWatchCallback(), [5.0], history=[3.0] * 5)[0] == []


def test_a_spike_of_a_run(tmp_path, warnings):
    watch = LossWatchCallback()
    watched(tmp_path, {28: 5.0}, watch, max_steps=30, logging_steps=1, eval_strategy="no").train()
    assert [(event["step"], event["event"]) for event in events(tmp_path)] == [(28, "spike")]
    assert "Step 28: `loss` jumped to" in warnings[0]


def test_steps_that_the_trainers_of_hfgpt_skip_are_events_too(tmp_path):
    watch = LossWatchCallback()
    feed(watch, [])
    args = SimpleNamespace(output_dir=str(tmp_path))
    for step, count in ((1, 0), (2, 2), (3, 2), (4, 3)):
        watch.on_log(args, TrainerState(global_step=step), TrainerControl(), logs={"nonfinite_steps": count})
    assert [(event["step"], event["value"]) for event in watch.events] == [(2, 2), (4, 1)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nonfinite": "stop"}, "`nonfinite` must be one of skip, warn, ignore, got 'stop'"),
        ({"spike": "skip"}, "`spike` must be one of warn, stop, got 'skip'"),
        ({"window": 5}, "`window` must be at least 20, got 5"),
        ({"max_spikes": 0}, "`max_spikes` must be at least 1"),
        ({"spike_deviations": 0.0}, "`spike_deviations` must be above 0"),
    ],
)
def test_what_a_watch_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        LossWatchCallback(**options)


# Early ends


def stopped_at(stopping, values, metric="eval_loss"):
    """The step at which a run with these values ends, one a step; None if it does not."""
    args, state, control = (
        SimpleNamespace(eval_strategy="steps", save_strategy="steps"),
        TrainerState(),
        TrainerControl(),
    )
    stopping.on_train_begin(args, state, control)
    for step, value in enumerate(values, start=1):
        state.global_step = step
        state.log_history.append({"step": step, metric: value})
        stopping.on_log(args, state, control, logs={metric: value})
        if control.should_training_stop:
            return step
    return None


@pytest.mark.parametrize(
    ("options", "values", "step"),
    [
        ({"patience": 2}, [5, 4, 4.5, 3.9, 4, 4.1, 1], 6),
        ({"patience": 2}, [5, 4, 3, 2], None),
        ({"patience": 2, "min_delta": 0.5}, [5, 4.8, 4.6, 4.5, 4.4], 3),
        ({"patience": 3, "min_delta": 0.5}, [5, 4.8, 4.6, 4.5, 4.4], None),  # half in all is an improvement
        ({"patience": 1, "min_delta": 0.1, "relative": True}, [10, 8.9, 8.2], 3),
        ({"patience": 1, "min_delta": 0.1, "relative": True}, [0.1, 0.089, 0.082], 3),
        ({"patience": None, "target": 3.0}, [5, 4, 4, 4, 4, 3.0, 2], 6),
        ({"patience": 2}, [5, math.nan, math.nan, 1], 3),
        ({"patience": 2}, [math.nan, math.nan], 2),
        ({"metric": "eval_accuracy", "patience": 2}, [0.1, 0.2, 0.15, 0.2], 4),
        ({"metric": "eval_accuracy", "patience": None, "target": 0.2}, [0.1, 0.2], 2),
        ({"metric": "eval_bits_per_byte", "patience": 1}, [1.2, 1.1, 1.3], 3),
        ({"metric": "eval_reward", "patience": 1, "greater_is_better": False}, [1.2, 1.1, 1.3], 3),
    ],
)
def test_when_a_run_ends(options, values, step):
    stopping = MetricStoppingCallback(**options)
    assert stopped_at(stopping, values, stopping.metric) == step
    assert (stopping.stop_reason is None) == (step is None)


@pytest.mark.slow
def test_patience_survives_a_resume_and_the_last_step_is_saved(tmp_path, warnings):
    """Without `load_best_model_at_end`, and from a checkpoint of a run that did not have the callback."""
    fields = {"kind": "gpt2", "eval_steps": 1, "learning_rate": 0.0, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "whole", [MetricStoppingCallback(patience=4)], **fields)
    whole.train()
    assert whole.state.global_step == 5 and (tmp_path / "whole" / "checkpoint-5").is_dir()
    assert "`eval_loss` was best at step 1" in warnings[-1]
    for name, before in (("with", [MetricStoppingCallback(patience=4)]), ("without", [])):
        make_trainer(tmp_path / name, before, **{**fields, "max_steps": 2}).train()
        stopping = MetricStoppingCallback(patience=4)
        resumed = make_trainer(tmp_path / name, [stopping], **fields)
        resumed.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-2"))
        assert resumed.state.global_step == 5 and stopping.early_stopping_patience_counter == 4


def test_a_metric_of_training_needs_no_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, [MetricStoppingCallback("loss", target=10.0)], eval_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_metric_that_is_not_there_is_told(tmp_path, warnings):
    with pytest.raises(ValueError, match="`eval_loss` with `eval_strategy: no`"):
        make_trainer(tmp_path, [MetricStoppingCallback()], eval_strategy="no").train()
    make_trainer(tmp_path, [MetricStoppingCallback("eval_f1")]).train()
    [words] = warnings
    assert "no `eval_f1` is logged" in words and "eval_loss" in words


def test_a_metric_of_one_of_several_evaluation_sets_is_there(warnings):
    """Each set is told by itself, and the first does not have it."""
    stopping = MetricStoppingCallback("eval_ko_loss", patience=3)
    args = SimpleNamespace(eval_strategy="steps", save_strategy="no")
    state, control = TrainerState(), TrainerControl()

    def evaluate(*names):
        for name in names:
            logs = {f"eval_{name}_loss": 1.0}
            state.log_history.append({"step": state.global_step, **logs})
            stopping.on_log(args, state, control, logs=logs)
            stopping.on_evaluate(args, state, control, metrics=logs)
        stopping.on_step_begin(args, state, control)

    stopping.on_train_begin(args, state, control)
    evaluate("en", "ko")
    assert warnings == []
    state.log_history.clear()
    stopping.on_train_begin(args, state, control)
    evaluate("en", "fr")
    evaluate("en", "fr")
    assert warnings == [
        "Training does not end early: no `eval_ko_loss` is logged. There are eval_en_loss, eval_fr_loss."
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"patience": 0}, "`patience`"), ({"patience": None}, "`target`"), ({"min_delta": -1.0}, "`min_delta`")],
)
def test_what_stopping_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        MetricStoppingCallback(**options)


# Checkpoints


def names(folder):
    return sorted((path.name for path in folder.glob("checkpoint-*")), key=lambda name: int(name.split("-")[1]))


def test_a_run_keeps_the_newest_the_best_and_those_at_intervals(tmp_path):
    """In its folder there is also what is none of a run's business."""
    pruning = CheckpointPruningCallback(1, keep_every_steps=3, keep_best=1)
    saved = {"save_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    for other in ("checkpoint-0", "checkpoint-old", "checkpoint-final", "notes"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "mine.txt").write_text("keep")
    # From step 2 on the loss is of ever worse weights.
    trainer = make_trainer(tmp_path, [pruning], kind="gpt2", learning_rate=1e-2, **saved)
    trainer.args.learning_rate = 1e-2
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    expected = {3, 6, 8, min(losses, key=losses.get)}
    kept = {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*") if (path / "config.json").exists()}
    assert kept == expected
    assert all((tmp_path / other / "mine.txt").exists() for other in ("checkpoint-0", "checkpoint-old", "notes"))
    resumed = make_trainer(tmp_path, [CheckpointPruningCallback(1)], kind="gpt2", max_steps=9, **saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    kept = {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*") if (path / "config.json").exists()}
    assert kept == {6, 9}  # the one it came from stays throughout


def make_checkpoint(output_dir, step, tokens=None, whole=True):
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0")
    if whole:
        history = [] if tokens is None else [{"step": step, "tokens": tokens}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "num_input_tokens_seen": 0}))
    return folder


def to_delete(pruning, output_dir, **fields):
    state = TrainerState(**{"global_step": 8, **fields})
    return sorted(int(path.name.split("-")[1]) for path in pruning.to_delete(output_dir, state))


def saved(pruning, output_dir, *steps, begin=0):
    """What a run that saves at these steps leaves, with its saves alone made."""
    args = SimpleNamespace(output_dir=str(output_dir), should_save=True, save_total_limit=None)
    state, control = TrainerState(global_step=begin), TrainerControl()
    pruning.on_train_begin(args, state, control)
    for step in steps:
        state.global_step = step
        if not (output_dir / f"checkpoint-{step}").exists():
            make_checkpoint(output_dir, step)
        pruning.on_save(args, state, control)
        assert (output_dir / f"checkpoint-{step}").exists()
    return [int(name.split("-")[1]) for name in names(output_dir)]


def test_a_run_that_was_rolled_back_keeps_what_it_saves(tmp_path, warnings):
    for step in (2, 4, 6, 8):
        make_checkpoint(tmp_path, step)
    assert saved(CheckpointPruningCallback(2), tmp_path, 5, begin=2) == [2, 4, 5]
    assert len(warnings) == 1 and "this run's 2: checkpoint-8, checkpoint-6, checkpoint-4" in warnings[0]
    assert saved(CheckpointPruningCallback(1), tmp_path, 7, 9, begin=5) == [5, 9] and len(warnings) == 1


def test_a_fresh_run_in_an_old_folder_keeps_what_it_saves(tmp_path, warnings):
    for step in (100, 200):
        make_checkpoint(tmp_path, step)
    pruning = CheckpointPruningCallback(2)
    assert saved(pruning, tmp_path, 10) == [10, 200]
    assert saved(pruning, tmp_path, 20, 30, begin=10) == [10, 20, 30]
    assert "move away what you want to keep" in warnings[0]
    assert saved(CheckpointPruningCallback(2), tmp_path / "new", 1, 2, 3) == [2, 3] and len(warnings) == 2


def test_half_a_checkpoint_counts_for_nothing(tmp_path):
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 4, whole=False)  # being written, or cut off
    damaged = make_checkpoint(tmp_path, 5)
    (damaged / "manifest.json").write_text(json.dumps({"files": {"lost.bin": {"bytes": 1, "xxh3_128": ""}}}))
    assert to_delete(CheckpointPruningCallback(1), tmp_path) == [1, 2]
    make_checkpoint(tmp_path, 6)
    assert to_delete(CheckpointPruningCallback(1), tmp_path) == [1, 2, 3, 5]


def test_links_are_neither_followed_nor_broken(tmp_path):
    run = tmp_path / "run"
    for step in (1, 2, 3, 4):
        make_checkpoint(run, step)
    (run / "latest").symlink_to("checkpoint-2")
    elsewhere = make_checkpoint(tmp_path / "elsewhere", 7)
    (run / "checkpoint-0").symlink_to(elsewhere)
    assert to_delete(CheckpointPruningCallback(1), run) == [1, 3]


def test_the_best_of_the_trainer_and_of_the_metric(tmp_path):
    for step in range(1, 7):
        make_checkpoint(tmp_path, step)
    history = [{"step": step, "eval_loss": loss} for step, loss in enumerate([3, 1, 2, math.nan, 4, 5], start=1)]
    best = {"best_model_checkpoint": str(tmp_path / "checkpoint-5"), "log_history": history}
    assert to_delete(CheckpointPruningCallback(1, keep_best=2), tmp_path, **best) == [1, 4]
    rising = CheckpointPruningCallback(1, keep_best=1, greater_is_better=True)
    assert to_delete(rising, tmp_path, log_history=history) == [1, 2, 3, 4, 5]


def test_the_first_past_each_multiple_of_tokens(tmp_path, warnings):
    for step, tokens in enumerate((90, 110, 150, 199, 205, None, 320, 330), start=1):
        make_checkpoint(tmp_path, step, tokens)
    pruning = CheckpointPruningCallback(1, keep_every_tokens=100)
    assert to_delete(pruning, tmp_path) == [1, 3, 4]
    assert len(warnings) == 1 and "checkpoint-6 stays" in warnings[0]


def test_a_dry_run_and_a_deletion_that_fails(tmp_path, warnings, monkeypatch):
    assert saved(CheckpointPruningCallback(1, dry_run=True), tmp_path, 4, 8) == [4, 8]
    assert len(warnings) == 1 and "checkpoint-4 would be deleted" in warnings[0]

    def failing(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(callbacks.pruning, "remove", failing)
    assert saved(CheckpointPruningCallback(1), tmp_path, 12, begin=8) == [4, 8, 12]
    assert "could not be deleted" in warnings[-1] and "Permission denied" in warnings[-1]


def test_what_pruning_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"`save_total_limit` \(3\).*keep_last=3"):
        make_trainer(tmp_path, [CheckpointPruningCallback()], save_total_limit=3).train()
    for options in ({"keep_last": 0}, {"keep_every_steps": 0}, {"keep_every_tokens": 0}, {"keep_best": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            CheckpointPruningCallback(**options)

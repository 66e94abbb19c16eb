"""What is seen of a run: numbers that are right under a batch ramp, samples that change nothing, files, reporters."""

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from callback_runs import LENGTH, PROMPTS, ReportingTrainer, make_model, make_tokenizer, make_trainer, weights
from helpers import run
from matplotlib.figure import Figure
from transformers import TrainerState

from hfgpt.training import callbacks
from hfgpt.training.callbacks import (
    LivePlotCallback,
    LossCurveCallback,
    Progress,
    SampleCallback,
    StragglerCallback,
    TerminalCallback,
    ThroughputCallback,
    require_reporters,
    set_up_reporters,
    short_duration,
    short_number,
    smoothed,
)


ARGS = SimpleNamespace(world_size=4, device=torch.device("cpu"))
FLOPS = SimpleNamespace(paper=6e6, dense=8e6, banded=7e6)


class Clock:
    """`time` whose seconds pass when told."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (callbacks.throughput, callbacks.common):
        monkeypatch.setattr(module, "time", clock)
    return clock


def steps(callback, progress, clock, *sizes, seconds=1.0):
    """Optimizer steps of so many tokens, each of that many seconds."""
    for tokens in sizes:
        callback.on_step_begin(ARGS, None, None)
        clock.now += seconds
        progress.step_tokens = tokens
        callback.on_step_end(ARGS, None, None)
        progress.tokens_seen += tokens


@pytest.fixture
def ramp(clock):
    """A run whose batch has grown, and which was evaluated, sampled and saved in between; and its throughput."""
    progress = Progress(train_tokens=10_000)
    callback = ThroughputCallback(progress, FLOPS, peak_flops_per_device=1e9)
    callback.on_train_begin(ARGS, None, None)
    clock.now += 50  # the first evaluation
    steps(callback, progress, clock, 100, 100)
    first = callback.metrics()
    clock.now += 30  # an evaluation, and what other callbacks do after it
    callback.on_evaluate(ARGS, None, None)
    clock.now += 20
    steps(callback, progress, clock, 200)
    clock.now += 10
    callback.on_save(ARGS, None, None)
    steps(callback, progress, clock, 300, 500)
    return callback, first, callback.metrics()


def test_speed_is_of_training_alone_and_of_tokens_as_they_come(ramp):
    callback, first, second = ramp
    assert first["tokens_per_second"] == 100
    assert second["tokens_per_second"] == pytest.approx(1000 / 3, abs=0.1)
    assert callback.overall() == pytest.approx(1200 / 5)
    assert (first["tokens"], second["tokens"], second["batch_tokens"]) == (200, 1200, 500)


def test_samples_and_pictures_are_no_work_of_training(clock, tmp_path, monkeypatch):
    """Whatever the order of the callbacks, and where nothing is evaluated or saved."""

    def slow(*args, **kwargs):
        clock.now += 30
        return torch.zeros(1, 4, dtype=torch.long)

    progress, model = Progress(train_tokens=1000), make_model("gpt2")
    throughput = ThroughputCallback(progress, FLOPS)
    samples, picture = SampleCallback(make_tokenizer(), ["a"], 2, every_steps=1), LivePlotCallback()
    args, state = SimpleNamespace(output_dir=str(tmp_path)), TrainerState(log_history=[{"step": 1, "loss": 1.0}])
    monkeypatch.setattr(model, "generate", slow)
    monkeypatch.setattr(picture, "draw", slow)
    throughput.on_train_begin(ARGS, None, None)
    for state.global_step in (1, 2):
        throughput.on_step_begin(ARGS, None, None)
        clock.now += 1
        progress.step_tokens = 100
        throughput.on_step_end(ARGS, None, None)
        progress.tokens_seen += 100
        samples.on_step_end(args, state, None, model=model)
        picture.on_train_end(args, state, None)
    assert clock.now == 100 + 2 + 3 * 30
    metrics = throughput.metrics()
    assert metrics["tokens_per_second"] == 100 and metrics["eta_seconds"] == 8 * (2 + 90) / 2


def test_the_eta_counts_evaluations_too(ramp):
    _, first, second = ramp
    assert first["eta_seconds"] == 9800 / 100
    assert second["eta_seconds"] == round(8800 / (1200 / 65))


def test_utilisation_is_over_all_devices(ramp):
    _, first, _ = ramp
    assert first["mfu"] == pytest.approx(100 * 8e6 / 4e9)
    assert first["mfu_banded"] == pytest.approx(100 * 7e6 / 4e9)
    assert first["model_tflops_per_second"] == pytest.approx(100 * 8e6 / 1e12)


def test_without_a_known_peak_there_is_no_utilisation(clock):
    progress = Progress()
    callback = ThroughputCallback(progress, FLOPS)
    callback.on_train_begin(ARGS, None, None)
    steps(callback, progress, clock, 100)
    metrics = callback.metrics()
    assert "mfu" not in metrics and metrics["model_tflops_per_second"] > 0
    assert "tokens_per_second" not in callback.metrics()  # no step since


def test_any_trainer_logs_them_under_accumulation(tmp_path):
    tokens = 2 * 3 * LENGTH
    callback = ThroughputCallback(tokens)
    trainer = make_trainer(tmp_path, [callback, StragglerCallback()], gradient_accumulation_steps=3)
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [line["tokens"] for line in lines] == [2 * tokens, 4 * tokens, 6 * tokens, 8 * tokens]
    assert all(line["batch_tokens"] == tokens and line["tokens_per_second"] > 0 for line in lines)
    assert lines[-1]["eta_seconds"] == 0
    assert all(line["peak_host_memory_bytes"] > 10e6 for line in lines)
    assert callback.tokens == 8 * tokens


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    """Weights of the tiny run that nobody watches."""
    trainer = make_trainer(tmp_path_factory.mktemp("unwatched"), [])
    trainer.train()
    return weights(trainer)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 1.5}])
def test_samples_change_nothing(unwatched, tmp_path, capsys, options):
    logged = []
    callback = SampleCallback(make_tokenizer(), PROMPTS, 8, log=logged.append, **options)
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    trainer.evaluate()  # of the last step again: not sampled twice
    assert torch.equal(weights(trainer), unwatched)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(step, text) for step in (4, 8) for text in PROMPTS]
    assert any(row["continuation"] for row in rows)
    assert "sample  영화는|" in capsys.readouterr().out
    assert [list(logs) for logs in logged] == [["samples"]] * 2 and "**The film was**" in logged[0]["samples"]


@pytest.mark.parametrize("training", [True, False])
def test_a_sample_leaves_the_mode_of_the_model_and_the_random_state(tmp_path, training):
    trainer = make_trainer(tmp_path, [])
    model = trainer.model.train(training)
    state = torch.get_rng_state()
    callback = SampleCallback(make_tokenizer(), ["a"], 2, do_sample=True)
    callback.on_evaluate(trainer.args, trainer.state, trainer.control, model=model)
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sample_past_the_positions_is_refused_before_training(tmp_path):
    trainer = make_trainer(tmp_path, [SampleCallback(make_tokenizer(), ["short", "long " * 13], 32)])
    with pytest.raises(ValueError, match=r"'long long.*has 65 tokens, and the model 64 positions"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_sample_ends_with_the_positions(tmp_path):
    trainer = make_trainer(tmp_path, [SampleCallback(make_tokenizer(), ["long " * 12], 32, min_new_tokens=4)])
    trainer.train()
    (row, *_) = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert row["continuation"]


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Samples by one of them change nothing; the slow one is named."""
    done = run(
        "-m", "torch.distributed.run", "--nproc_per_node", 2, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
        Path(__file__).parent / "callback_runs.py", tmp_path,
    )  # fmt: skip
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank in found:
        assert rank["same"]
        assert rank["metrics"]["straggler_ratio"] == 1.5  # 3 over the median of 1 and 3
        assert rank["again"]["straggler_ratio"] >= 1.0
        assert "straggler_ratio" not in rank["nothing timed"]
        # The sums over both, at the log line that ends both: of step 4, whose loss is below the target.
        assert rank["tokens"] == [2 * 4 * 2 * LENGTH] and rank["stopped at"] == 4
        assert rank["events"] == [[3, "nonfinite"]] and rank["finite"]
    assert found[0]["metrics"]["peak_host_memory_bytes"] == found[1]["metrics"]["peak_host_memory_bytes"]
    assert done.stderr.count("Process 1 on ") == 1 and "needs 1.50 times as long" in done.stderr
    assert len((tmp_path / "sampled" / "samples.jsonl").read_text().splitlines()) == 2 * len(PROMPTS)
    assert [path.name for path in (tmp_path / "sampled").glob("checkpoint-*")] == ["checkpoint-8"]
    assert sorted(path.name for path in (tmp_path / "watched0").iterdir()) == ["live_plot.png", "loss_events.jsonl"]
    assert not (tmp_path / "watched1").exists()
    assert done.stderr.count("Step 3: the loss or the gradients are not finite") == 1


STATE = TrainerState(global_step=120, max_steps=4800)


def test_a_line_of_training():
    logs = {
        "loss": 5.43219, "grad_norm": 0.9123, "learning_rate": 6e-4, "epoch": 0.1, "tokens": 31_457_280,
        "batch_tokens": 524_288, "tokens_per_second": 71_234.5, "mfu": 0.4123, "mfu_banded": 0.39,
        "model_tflops_per_second": 400.0, "eta_seconds": 3 * 86400 + 4 * 3600 + 59,
        "peak_device_memory_bytes": 71.2 * 2**30, "peak_host_memory_bytes": 1e9, "straggler_ratio": 1.02,
    }  # fmt: skip
    line = TerminalCallback(Progress(train_tokens=300_000_000_000)).line(STATE, logs)
    assert line == (
        "step 120/4,800  tokens 31.5M/300B  loss 5.4322  grad 0.91  lr 6.00e-04  batch 524k  71.2k tok/s  MFU 41.2%  "
        "ETA 3d 4h  mem 71.2GiB"
    )


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        ({"loss": math.nan, "grad_norm": math.inf}, "LOSS NOT FINITE  GRADIENTS NOT FINITE"),
        ({"loss": 1.0, "nonfinite_steps": 2}, "SKIPPED SO FAR: 2 steps without finite gradients  loss 1.0000"),
        ({"loss": 1.0, "nonfinite_steps": 0}, "step 120/4,800  loss 1.0000"),
        ({"loss": 1.0, "straggler_ratio": 1.5}, "slowest process 1.50x"),
        ({"loss": 1.0, "aux_loss": 0.25}, "aux loss 0.25"),
        (
            {
                "eval_loss": 3.2,
                "eval_perplexity": 24.53,
                "eval_bits_per_byte": 1.1,
                "eval_runtime": 75,
                "tokens": 1000,
            },
            "tokens 1k  held out: loss 3.2000  perplexity 24.53  bits/byte 1.1000  (1m 15s)",
        ),
        ({"eval_accuracy": 0.912345, "eval_runtime": 2.0}, "held out: accuracy 0.9123  (2s)"),
        ({"train_runtime": 7300.0, "train_loss": 4.0, "total_flos": 1e9}, "finished in 2h 1m  mean loss 4.0000"),
    ],
)
def test_what_a_line_says(logs, words):
    assert words in TerminalCallback().line(STATE, logs)


def test_texts_are_no_line():
    assert TerminalCallback().line(STATE, {"samples": "text", "epoch": 1.0}) == ""


def test_numbers_for_people():
    assert [short_number(value) for value in (0, 999, 999_999, 31_457_280, 3e11, 3.14e23)] == [
        "0", "999", "1M", "31.5M", "300B", "3.14e+11T",
    ]  # fmt: skip
    assert [short_duration(value) for value in (0, 59.6, 3600, 90061)] == ["0s", "1m 0s", "1h 0m", "1d 1h"]


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_the_terminal_in_place_of_dictionaries(tmp_path, capsys, monkeypatch, disable_tqdm):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trainer = make_trainer(tmp_path, [ThroughputCallback(2 * LENGTH)], disable_tqdm=disable_tqdm)
    TerminalCallback().replace_in(trainer)
    trainer.train()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert sum(" tok/s" in line for line in lines) == 4
    assert sum("held out:" in line for line in lines) == 2
    assert lines[-1].startswith("step 8/8") and "finished in" in lines[-1]
    assert "{'" not in out
    assert ("8/8 [" in err) != disable_tqdm


HISTORY = [
    {"step": 0, "eval_loss": 6.0},
    {"step": 2, "loss": 5.0, "learning_rate": 1e-3, "tokens": 200, "batch_tokens": 100},
    {"step": 4, "loss": 4.0, "learning_rate": 2e-3, "tokens": 600, "batch_tokens": 200},
    {"step": 4, "eval_loss": 4.5},
    {"step": 5, "eval_loss": 4.4, "tokens": 800},
]


def test_curves_are_over_the_tokens_of_the_log():
    curve = LossCurveCallback("unused.png")
    assert curve.points(HISTORY, "loss") == ([200, 600], [5.0, 4.0])
    assert curve.points(HISTORY, "eval_loss") == ([0, 600, 800], [6.0, 4.5, 4.4])
    assert curve.points(HISTORY, "batch_tokens") == ([200, 600], [100, 200])
    plain = [{"step": 3, "loss": 2.0}]
    assert curve.points(plain, "loss") == ([3], [2.0])
    assert LossCurveCallback("unused.png", tokens_per_step=10).points(plain, "loss") == ([30], [2.0])


def test_the_picture_has_a_panel_for_each_quantity(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig

    def savefig(self, path, **kwargs):
        figures.append(self)
        if len(figures) == 1:
            save(self, path, **kwargs)
        else:
            Path(path).write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", savefig)
    curve = LossCurveCallback(tmp_path / "new" / "curve.png")
    curve.draw(HISTORY)
    curve.draw([{"step": step, "loss": 5 - step / 100} for step in range(200)])
    curve.draw([])
    assert [[axes.get_ylabel() for axes in figure.axes] for figure in figures] == [
        ["loss (nats per token)", "learning rate", "batch tokens"], ["loss (nats per token)"], ["loss (nats per token)"]
    ]  # fmt: skip
    assert [figure.axes[-1].get_xlabel() for figure in figures] == ["tokens", "steps", "steps"]
    assert [len(figure.axes[0].lines) for figure in figures] == [2, 2, 0]
    assert [path.name for path in curve.path.parent.iterdir()] == ["curve.png"]


def test_smoothing_keeps_a_constant_and_passes_over_what_is_not_finite():
    assert smoothed([1.0] * 100) == []
    values = [2.0] * 150 + [math.nan] + [2.0] * 149
    assert smoothed(values) == pytest.approx([2.0] * 300)


def test_a_full_disk_does_not_end_the_run(unwatched, tmp_path, monkeypatch, capsys):
    """Neither below the picture, whose older version stays, nor below the samples."""
    picture = tmp_path / "curve.png"
    picture.write_text("older")

    errors = iter([OSError(28, "No space left on device")] * 2 + [ValueError("no such font")])

    def savefig(self, path, **kwargs):
        Path(path).write_text("half")
        raise next(errors)

    monkeypatch.setattr(Figure, "savefig", savefig)
    warnings = []
    monkeypatch.setattr(callbacks.logger, "warning", warnings.append)
    (tmp_path / "samples.jsonl").mkdir()  # cannot be opened for writing
    trainer = make_trainer(tmp_path, [LossCurveCallback(picture), SampleCallback(make_tokenizer(), ["a"], 2)])
    trainer.train()
    assert torch.equal(weights(trainer), unwatched)
    assert picture.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "samples.jsonl"]
    told = [text for text in warnings if text.startswith("The loss curve could not be drawn, training goes on: ")]
    assert len(told) == 2 and "No space left" in told[0] and "no such font" in told[1]
    assert not list(errors)
    assert sum("samples" in text for text in warnings) == 2


NUMBERS = {
    "train/loss", "train/grad_norm", "train/learning_rate", "train/tokens", "train/batch_tokens",
    "train/tokens_per_second", "train/mfu", "train/mfu_banded", "train/model_tflops_per_second", "train/eta_seconds",
    "train/peak_host_memory_bytes", "eval/loss",
}  # fmt: skip


def test_all_arrives_in_tensorboard_and_a_resumed_run_goes_on(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read():
        events = EventAccumulator(str(tmp_path / "runs"))
        events.Reload()
        return events

    fields = {"report_to": "tensorboard", "save_strategy": "steps", "save_steps": 4}
    trainer = make_trainer(tmp_path, [], ReportingTrainer, **fields)
    trainer.train()
    events = read()
    assert set(events.Tags()["scalars"]) >= NUMBERS
    assert [point.step for point in events.Scalars("train/batch_tokens")] == [2, 4, 6, 8]
    assert [point.value for point in events.Scalars("train/batch_tokens")] == [101, 103, 105, 107]
    assert len(events.Tensors("train/samples/text_summary")) == 2
    assert "영화는" in events.Tensors("train/samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert {"args/text_summary", "model_config/text_summary"} <= set(events.Tags()["tensors"])
    resumed = make_trainer(tmp_path, [], ReportingTrainer, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [point.step for point in read().Scalars("train/loss")] == [2, 4, 6, 8]
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [2, 4, 6, 8]


@pytest.mark.slow
def test_two_runs_in_one_process_keep_their_own_tensorboard_folders(tmp_path):
    pytest.importorskip("tensorboard")
    for name in ("one", "two"):
        make_trainer(tmp_path / name, [], ReportingTrainer, report_to="tensorboard").train()
        assert len(list((tmp_path / name / "runs").glob("events*"))) == 1


TRACKIO_RUN = """
import sys
from pathlib import Path
from callback_runs import ReportingTrainer, make_trainer
fields = {"report_to": "trackio", "project": "hfgpt", "run_name": "tiny"}
make_trainer(Path(sys.argv[1]), [], ReportingTrainer, **fields).train()
"""


@pytest.mark.slow
def test_all_arrives_in_trackio_without_a_network(tmp_path):
    pytest.importorskip("trackio")
    read = (
        "import json; from trackio.sqlite_storage import SQLiteStorage; "
        "print(json.dumps(SQLiteStorage.get_logs('hfgpt', 'tiny'), default=str))"
    )
    places = {name: str(tmp_path / name) for name in ("TRACKIO_DIR", "HF_HOME")}
    env = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **places}
    run("-c", TRACKIO_RUN, tmp_path / "run", **env)
    logs = json.loads(run("-c", read, **env).stdout.splitlines()[-1])
    assert set().union(*logs) >= NUMBERS | {"train/samples"}
    assert [row["train/batch_tokens"] for row in logs if "train/batch_tokens" in row] == [101, 103, 105, 107]


def test_a_missing_package_is_named_before_training(monkeypatch):
    monkeypatch.setattr(callbacks.reporters, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"`report_to: trackio` needs trackio: pip install 'hfgpt\[report\]'"):
        require_reporters(["trackio"])
    require_reporters(["none"])
    require_reporters([])


def test_a_reporter_that_fails_is_left_out(unwatched, tmp_path, monkeypatch):
    from transformers.integrations import WandbCallback

    class Failing(WandbCallback):
        calls = 0

        def __init__(self):
            pass

        def on_train_begin(self, *args, **kwargs):
            pass

        def on_log(self, *args, **kwargs):
            self.calls += 1
            raise RuntimeError("no connection")

        on_train_end = on_log

    warnings = []
    monkeypatch.setattr(callbacks.logger, "warning", warnings.append)
    callback = Failing()
    trainer = make_trainer(tmp_path, [callback])
    set_up_reporters(trainer)
    trainer.train()
    assert callback.calls == 1
    assert warnings == ["Failing failed and is left out from here on: RuntimeError('no connection')"]
    assert torch.equal(weights(trainer), unwatched)


def test_wrong_settings_of_a_reporter_show_before_training(tmp_path):
    from transformers.integrations import WandbCallback

    class Misconfigured(WandbCallback):
        def __init__(self):
            pass

        def on_train_begin(self, *args, **kwargs):
            raise RuntimeError("log in first")

    trainer = make_trainer(tmp_path, [Misconfigured()])
    set_up_reporters(trainer)
    with pytest.raises(RuntimeError, match="log in first"):
        trainer.train()

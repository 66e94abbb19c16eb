"""Scaling laws: a known law is found again, and what cannot be fitted is refused."""

import json
import math
import random

import pytest

from hfgpt import GPT3Config
from hfgpt.cli import main
from hfgpt.planner import count_parameters, flops_per_token
from hfgpt.scaling import Run, ScalingLaw, draw, fit, predict, read_run, report


LAW = ScalingLaw(a=1.7, b=2.4, k=0.12, unit=1e15, max_relative_error=0.0)


def runs_of(law, count, noise=0.0):
    random_state = random.Random(0)
    flops = [law.unit * 10 ** (index - count / 2) for index in range(count)]
    losses = [law.loss(c) * (1 + random_state.uniform(-noise, noise)) for c in flops]
    return [Run(f"run {i}", 1, 1, c, loss) for i, (c, loss) in enumerate(zip(flops, losses))]


def test_a_known_law_is_found_again():
    found = fit(runs_of(LAW, 6))
    for flops in (1e12, 1e15, 1e18, 1e20):
        assert found.loss(flops) == pytest.approx(LAW.loss(flops), rel=1e-4)
    assert (found.a, found.k) == (pytest.approx(LAW.a, rel=1e-2), pytest.approx(LAW.k, rel=1e-2))
    assert found.max_relative_error < 1e-6


def test_the_order_of_the_runs_does_not_matter():
    runs = runs_of(LAW, 5, noise=0.01)
    assert fit(runs[::-1]).loss(1e19) == pytest.approx(fit(runs).loss(1e19), rel=1e-6)


def test_noisy_runs_give_a_range_around_the_prediction():
    runs = runs_of(LAW, 7, noise=0.01)
    value, (low, high) = predict(runs, 1e20)
    assert low < value < high
    assert value == pytest.approx(LAW.loss(1e20), rel=0.05)


def test_four_runs_have_no_range():
    value, (low, high) = predict(runs_of(LAW, 4), 1e19)
    assert low == value == high


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_runs_are_refused(count):
    with pytest.raises(ValueError, match=f"4 or more runs of different compute, got {count}"):
        fit(runs_of(LAW, count))


def test_runs_of_equal_compute_are_refused():
    with pytest.raises(ValueError, match="of different compute"):
        fit([Run("one", 1, 1, 1e15, 3.0 + i) for i in range(5)])


def test_a_loss_that_rises_is_refused_with_advice():
    runs = [Run(str(i), 1, 1, 10.0**i, 3.0 + i) for i in range(5)]
    with pytest.raises(ValueError, match="lower learning rate"):
        fit(runs)


def test_a_run_is_read_from_its_folder(tmp_path):
    config = GPT3Config.from_preset("gpt3-125m", num_hidden_layers=2, vocab_size=500)
    config.save_pretrained(tmp_path)
    results = {"train_tokens": 1000, "eval_loss": 3.5, "sequence_length": 128}
    (tmp_path / "all_results.json").write_text(json.dumps(results))
    run = read_run(tmp_path)
    assert (run.parameters, run.tokens, run.loss) == (count_parameters(config), 1000, 3.5)
    assert run.flops == pytest.approx(1000 * flops_per_token(config, 128).dense)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not the folder of a finished pretraining run"):
        read_run(tmp_path)


def test_the_plot_and_the_report(tmp_path):
    runs = runs_of(LAW, 5)
    target = Run("next", 1, 1, 1e18, LAW.loss(1e18) * 1.01)
    found = report(runs, target)
    assert found["prediction_error"] == pytest.approx(1 / 1.01 - 1, rel=1e-3)
    assert "measured_loss" not in report(runs, Run("next", 1, 1, 1e18, math.nan))
    draw(tmp_path / "ladder.png", runs, target, found["predicted_loss"])
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


def write_run(folder, width, tokens=1000, vocab_size=500, loss=None):
    """The folder of a run of 2 layers whose loss is that of a law, unless it is given."""
    config = GPT3Config.from_preset("gpt3-125m", **model_fields(width), vocab_size=vocab_size)
    config.save_pretrained(folder)
    flops = tokens * flops_per_token(config, 64).dense
    results = {"train_tokens": tokens, "sequence_length": 64}
    results["eval_loss"] = 2.0 + 3.0 * (flops / 1e8) ** -0.2 if loss is None else loss
    (folder / "all_results.json").write_text(json.dumps(results))
    return str(folder)


def model_fields(width):
    return {"num_hidden_layers": 2, "hidden_size": width, "num_attention_heads": 2, "max_position_embeddings": 64}


@pytest.fixture
def rungs(tmp_path):
    return [write_run(tmp_path / f"run-{width}", width) for width in (16, 32, 48, 64, 96)]


@pytest.fixture
def recipe(tmp_path):
    """Of the next size; `train_tokens` a little below what whole steps make of it."""
    path = tmp_path / "next.yaml"
    fields = {"preset": "gpt3-125m", "model_overrides": model_fields(128), "sequence_length": 64}
    path.write_text(json.dumps({**fields, "train_tokens": 998, "output_dir": str(tmp_path / "next")}))
    return str(path)


def fitted(capsys, *words):
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_ladder_predicts_the_recipe(rungs, recipe, tmp_path, capsys):
    result = fitted(capsys, "--recipe", recipe, "--fit", *rungs, "--plot", str(tmp_path / "ladder.png"))
    assert set(result) == {"fit"}
    fit = result["fit"]
    assert [run["name"] for run in fit["runs"]] == rungs
    assert fit["law"]["a"] == pytest.approx(2.0, rel=0.02)
    # The corpus' vocabulary is that of the runs.
    config = GPT3Config.from_preset("gpt3-125m", **model_fields(128), vocab_size=500)
    flops = 998 * flops_per_token(config, 64).dense
    assert fit["target_flops"] == pytest.approx(flops) and fit["target_parameters"] == count_parameters(config)
    expected = 2.0 + 3.0 * (flops / 1e8) ** -0.2
    assert fit["predicted_loss"] == pytest.approx(expected, rel=1e-3)
    low, high = fit["predicted_range"]
    assert low <= fit["predicted_loss"] <= high and high - low < 0.01
    assert "measured_loss" not in fit
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_the_prediction_is_compared_where_the_recipe_has_been_run(rungs, recipe, tmp_path, capsys):
    folder = write_run(tmp_path / "next", 128)
    loss = json.loads((tmp_path / "next" / "all_results.json").read_text())["eval_loss"] * 1.1
    write_run(tmp_path / "next", 128, loss=loss)
    fit = fitted(capsys, "--recipe", recipe, "--fit", *rungs)["fit"]
    assert fit["measured_loss"] == loss and fit["prediction_error"] == pytest.approx(1 / 1.1 - 1, abs=1e-3)
    again = fitted(capsys, "--recipe", recipe, "--fit", *rungs, folder)["fit"]
    assert len(again["runs"]) == 5 and again["predicted_loss"] == fit["predicted_loss"]
    assert "not among the runs" in again["notes"][0]
    by_folder = fitted(capsys, folder, "--fit", *rungs)["fit"]
    assert by_folder["prediction_error"] == fit["prediction_error"]


@pytest.mark.parametrize("stale", [{"width": 160}, {"tokens": 500}])
def test_a_run_of_another_size_is_not_compared(rungs, recipe, tmp_path, capsys, stale):
    write_run(tmp_path / "next", **{"width": 128, **stale})
    fit = fitted(capsys, "--recipe", recipe, "--fit", *rungs)["fit"]
    assert "measured_loss" not in fit and "is not compared" in fit["notes"][0]


def test_a_model_takes_the_tokens_of_the_runs(rungs, tmp_path, capsys):
    assert fitted(capsys, "gpt3-125m", "--fit", *rungs)["fit"]["target_tokens"] == 1000
    assert fitted(capsys, "gpt3-125m", "--tokens", "7", "--fit", *rungs)["fit"]["target_tokens"] == 7
    other = write_run(tmp_path / "longer", 80, tokens=2000)
    assert main(["plan", "gpt3-125m", "--fit", *rungs, other]) == 2
    assert "give `--tokens`" in capsys.readouterr().err


def test_with_gpus_there_is_a_plan_too(rungs, recipe, capsys):
    result = fitted(capsys, "--recipe", recipe, "--gpus", "2", "--fit", *rungs)
    assert result["parameters"] == result["fit"]["target_parameters"]
    assert main(["plan", "--recipe", recipe, "--gpus", "2", "--fit", *rungs]) == 0
    assert "accelerate launch" in capsys.readouterr().out


def test_the_overrides_of_a_recipe_win_over_the_runs_vocabulary(rungs, tmp_path, capsys):
    path = tmp_path / "other.yaml"
    path.write_text(json.dumps({"preset": "gpt3-125m", "model_overrides": {**model_fields(128), "vocab_size": 600}}))
    found = fitted(capsys, "--recipe", str(path), "--fit", *rungs)["fit"]
    config = GPT3Config.from_preset("gpt3-125m", **model_fields(128), vocab_size=600)
    assert found["target_parameters"] == count_parameters(config)


def test_the_table_of_a_fit(rungs, recipe, tmp_path, capsys):
    write_run(tmp_path / "next", 128)
    assert main(["plan", "--recipe", recipe, "--fit", *rungs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == rungs
    assert lines[0].split() == ["run", "parameters", "tokens", "FLOPs", "loss", "fitted", "error"]
    text = "\n".join(lines[6:])
    assert "loss = 2.0" in text and "by leaving out one run each" in text and "measured loss" in text
    assert main(["plan", "--fit", *rungs[:4]]) == 0
    assert "predicted" not in capsys.readouterr().out
    assert main(["plan", "--recipe", recipe, "--fit", *rungs[:4]]) == 0
    assert "no range: leaving out one run each needs 5" in capsys.readouterr().out


def test_runs_of_different_vocabularies_are_noted(rungs, tmp_path, capsys):
    other = write_run(tmp_path / "other", 80, vocab_size=600)
    assert "do not compare" in fitted(capsys, "--fit", *rungs, other)["fit"]["notes"][0]


def test_wrong_options_of_a_fit_are_one_message(rungs, tmp_path, capsys):
    for words, message in (
        (["--fit", *rungs[:3]], "4 or more runs"),
        (["--fit", *rungs, rungs[0]], "twice"),
        (["--fit", *rungs, str(tmp_path)], "not the folder of a finished pretraining run"),
        (["gpt3-125m", "--gpus", "8", "--plot", "a.png"], "`--plot` draws what `--fit` found"),
        (["--fit", *rungs, "--plot", str(tmp_path / "a.unknown")], "unknown"),
        (["--fit", *rungs, "--gpus", "8"], "Name a model"),
    ):
        assert main(["plan", *words]) == 2
        assert message in capsys.readouterr().err

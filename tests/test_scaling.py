"""Scaling laws: a known law is found again, and what cannot be fitted is refused."""

import json
import math
import random

import pytest

from hfgpt import GPT3Config
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

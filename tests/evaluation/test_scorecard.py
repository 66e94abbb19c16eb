"""Table H.1 is printed as published, beside the right size, and what is not the paper's protocol is said."""

import pytest

from hfgpt.evaluation.benchmarks import BENCHMARKS
from hfgpt.evaluation.scorecard import PUBLISHED, nearest_preset, scorecard, scorecard_lines
from hfgpt.model.presets import PRESETS


# As printed: zero-shot columns, and the few-shot ones of the last three with their K.
TABLE_H1 = """
lambada 0 42.7 54.3 60.4 63.6 67.1 70.3 72.5 76.2
hellaswag 0 33.7 43.6 51.0 54.7 62.8 67.4 70.9 78.9
piqa 0 64.6 70.2 72.9 75.1 75.6 78.0 78.5 81.0
winogrande 0 52.0 52.1 57.4 58.7 62.3 64.5 67.9 70.2
arc-easy 0 43.6 46.5 53.0 53.8 58.2 60.2 63.8 68.8
storycloze 0 63.3 68.5 72.4 73.4 77.2 77.7 79.5 83.2
triviaqa 64 6.96 16.3 26.5 32.1 42.3 51.6 57.5 71.2
squadv2 16 32.1 45.5 44.9 58.7 55.9 62.1 67.7 69.8
wmt14-fr-en 64 5.30 26.2 29.5 32.2 35.1 36.4 38.3 41.4
"""
SIZE = PRESETS["gpt3-125m"].num_parameters


def result(task: str = "lambada", value: float = 0.4, shots: int = 0, rows: int = 5153, **fields: object) -> dict:
    metrics = {"exact_match": {"value": value, "low": value - 0.01, "high": value + 0.02}}
    return {"task": task, "language": "en", "shots": shots, "rows": rows, "metrics": metrics, **fields}


def test_the_numbers_are_those_of_the_table():
    printed = [line.split() for line in TABLE_H1.split("\n") if line]
    assert [(row.task, str(row.shots), *row.scores) for row in PUBLISHED] == [
        (task, shots, *map(float, scores)) for task, shots, *scores in printed
    ]


def test_every_row_is_of_a_benchmark_that_there_is_and_asks_as_it_does():
    for row in PUBLISHED:
        benchmark = BENCHMARKS[row.task]
        assert row.shots in (0, benchmark.shots)
        assert benchmark.split == {"dev": "validation", "test": "test"}[row.split]
        assert set(row.names) & set(benchmark.task_for(row.shots).metrics)


@pytest.mark.parametrize(
    ("parameters", "preset"),
    [(1, "gpt3-125m"), (124_439_808, "gpt3-125m"), (1_557_611_200, "gpt3-1.3b"), (10**13, "gpt3-175b")],
)
def test_nearest_preset(parameters, preset):
    assert nearest_preset(parameters) == preset


def test_nearest_is_by_ratio():
    # 211.1M is the geometric mean of 125M and 356M; the arithmetic one is 240.5M.
    assert nearest_preset(205_000_000) == "gpt3-125m"
    assert nearest_preset(220_000_000) == "gpt3-350m"


def test_no_parameters():
    with pytest.raises(ValueError, match="`parameters` must be above 0, got 0"):
        nearest_preset(0)


def test_ours_is_in_percent_beside_the_size():
    (row,) = scorecard([result()], SIZE)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((40.0, 39.0, 42.0))
    assert row["paper"] == {"gpt3-125m": 42.7}
    assert row["same_protocol"] and row["differences"] == []


def test_a_size_between_two_has_both_neighbours():
    (row,) = scorecard([result()], 200_000_000)
    assert row["paper"] == {"gpt3-125m": 42.7, "gpt3-350m": 54.3}
    lines = scorecard_lines([result()], 200_000_000)
    assert "200,000,000 parameters are between gpt3-125m (125,226,240) and gpt3-350m (355,871,744)" in lines[0]
    assert "difference" not in lines[2]
    assert lines[3].split() == ["lambada", "0", "accuracy", "40.0", "39.0", "to", "42.0", "42.7", "54.3"]


@pytest.mark.parametrize("parameters", [111_000_000, 124_439_808, 139_000_000])
def test_another_vocabulary_is_the_same_size(parameters):
    (row,) = scorecard([result()], parameters)
    assert list(row["paper"]) == ["gpt3-125m"]


def test_what_is_smaller_or_larger_than_the_table_is_said():
    assert "fewer than any published model has; the smallest is gpt3-125m" in scorecard_lines([result()], 10**7)[0]
    assert "more than any published model has; the largest is gpt3-175b" in scorecard_lines([result()], 10**12)[0]
    assert [list(row["paper"]) for row in scorecard([result()], 10**7)] == [["gpt3-125m"]]
    assert [list(row["paper"]) for row in scorecard([result()], 10**12)] == [["gpt3-175b"]]


def test_what_is_not_the_papers_protocol_is_said():
    (row,) = scorecard([result(shots=5, rows=500, split="validation")], SIZE)
    assert not row["same_protocol"]
    assert row["differences"] == [
        "5 examples, the paper's zero-shot",
        "validation split, the paper's test",
        "500 rows, the paper's test split has 5,153",
    ]
    lines = scorecard_lines([result(shots=5, rows=500)], SIZE)
    assert lines[3].split()[:2] == ["lambada*", "5"]
    assert lines[-1] == (
        "* lambada, 5 examples: 5 examples, the paper's zero-shot; 500 rows, the paper's test split has 5,153"
    )


def test_the_hubs_name_of_the_dev_split():
    (row,) = scorecard([result("piqa", rows=1838, split="validation")], SIZE)
    assert row["same_protocol"]


def test_few_shot_column_and_a_metric_that_is_no_share():
    bleu = {"bleu": {"value": 5.0, "low": 4.5, "high": 5.5}, "chrf": {"value": 30.0, "low": 29.0, "high": 31.0}}
    translation = {"task": "wmt14-fr-en", "language": "fr-en", "shots": 64, "rows": 3003, "metrics": bleu}
    (row,) = scorecard([translation], SIZE)
    assert (row["value"], row["metric"], row["paper"]) == (5.0, "BLEU", {"gpt3-125m": 5.3})
    (difference,) = row["differences"]
    assert "sacrebleu" in difference


def test_difference_in_points():
    lines = scorecard_lines([result(value=0.45)], SIZE)
    assert lines[0].endswith("125,226,240 parameters are the size of gpt3-125m (125,226,240).")
    assert lines[3].split()[-2:] == ["42.7", "+2.3"]
    assert len(lines) == 4


def test_what_the_table_does_not_have_is_left_out():
    other = result("sentiment")
    unknown_metric = {**result(), "metrics": {"perplexity": {"value": 3.0, "low": 2.0, "high": 4.0}}}
    assert scorecard([other, unknown_metric], SIZE) == []
    assert scorecard_lines([other], SIZE) == []
    assert [row["task"] for row in scorecard([other, result()], SIZE)] == ["lambada"]

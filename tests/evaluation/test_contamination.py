"""Rows of a benchmark are clean or dirty as the prepared corpus' own report has them."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hfgpt.config import from_mapping
from hfgpt.data.corpus import CorpusConfig, prepare
from hfgpt.data.executors import ExecutorConfig
from hfgpt.data.readers import RowErrors, SourceConfig
from hfgpt.evaluation.contamination import (
    RowContamination,
    clean_and_dirty,
    clean_and_dirty_lines,
    contamination_of,
    difference,
)
from hfgpt.tasks import get_task
from hfgpt.tasks.metrics import Score, score_with_intervals
from hfgpt.tasks.rows import read_examples
from hfgpt.tasks.scoring import Prediction


TASK = get_task("sentiment")
WORDS = [
    f"{first}{second}" for first in ("ba", "ko", "mi", "tu", "re", "sol") for second in ("ran", "dil", "vek", "mor")
]
# Rows 0 to 23: of each three one is planted in the corpus; 24 and 25 are too short to be checked.
PLANTED, ROWS, SHORT = range(0, 24, 3), 24, 2


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words)).capitalize() + "."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of 26 rows, and a corpus that was prepared without eight of them."""
    folder = tmp_path_factory.mktemp("contamination")
    generator = random.Random(0)
    texts = [sentence(generator, 20) for _ in range(ROWS)] + [sentence(generator, 6) for _ in range(SHORT)]
    lines = [json.dumps({"text": text, "label": ("positive", "negative")[n % 2]}) for n, text in enumerate(texts)]
    # A row without text has no number in the report, but a line in the file.
    lines.insert(5, json.dumps({"text": " ", "label": "positive"}))
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    documents = [" ".join(sentence(generator, 12) for _ in range(8)) for _ in range(40)]
    for number in PLANTED:
        documents[number] += f" {texts[number]} " + " ".join(sentence(generator, 12) for _ in range(8))
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    recipe = {
        "sources": [{"name": "docs", "path": str(folder / "docs.jsonl")}],
        "deduplicate": "exact",
        "decontaminate": {"benchmarks": [{"name": "my test", "path": str(folder / "test.jsonl")}]},
        "tokenizer": {"vocab_size": 400},
        "holdout_fraction": 0.0,
    }
    prepare(from_mapping(CorpusConfig, recipe, "recipe"), folder / "corpus", executor=ExecutorConfig(workers=1))
    return folder


def source_of(folder: Path, file: str = "test.jsonl", **fields) -> SourceConfig:
    return SourceConfig(path=str(folder / file), **fields)


def examples_of(source: SourceConfig):
    return read_examples(TASK, source, RowErrors(), progress=False)


def groups(rows: list[RowContamination]) -> list[str]:
    return [row.group for row in rows]


EXPECTED = [*("dirty" if number in PLANTED else "clean" for number in range(ROWS)), *["too short"] * SHORT]


def test_planted_rows_are_dirty(world):
    source = source_of(world)
    examples = examples_of(source)
    rows = contamination_of(world / "corpus", "my test", examples, source)
    assert groups(rows) == EXPECTED
    assert not any(row.left_in_corpus for row in rows)


def test_some_rows_in_another_order_are_found_by_their_lines(world):
    source = source_of(world)
    examples = examples_of(source)
    chosen = [25, 3, 4, 0, 22]
    rows = contamination_of(world / "corpus", "my test", [examples[number] for number in chosen], source)
    assert groups(rows) == [EXPECTED[number] for number in chosen]


def test_first_rows_alone(world):
    source = source_of(world, max_rows=7)
    examples = examples_of(source)
    assert len(examples) == 7
    assert groups(contamination_of(world / "corpus", "my test", examples, source)) == EXPECTED[:7]


def test_the_file_may_have_moved(world, tmp_path):
    shutil.copy(world / "test.jsonl", tmp_path / "moved.jsonl")
    source = source_of(tmp_path, "moved.jsonl")
    assert groups(contamination_of(world / "corpus", "my test", examples_of(source), source)) == EXPECTED


def test_another_number_of_rows(world, tmp_path):
    lines = (world / "test.jsonl").read_text().splitlines()
    (tmp_path / "less.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    source = source_of(tmp_path, "less.jsonl")
    with pytest.raises(ValueError, match=r"The report of 'my test' in .* is of 26 rows, and .*less.jsonl has 24"):
        contamination_of(world / "corpus", "my test", examples_of(source), source)


def test_the_same_number_of_other_rows(world, tmp_path):
    lines = (world / "test.jsonl").read_text().splitlines()
    (tmp_path / "shuffled.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    source = source_of(tmp_path, "shuffled.jsonl")
    with pytest.raises(ValueError, match=r"shuffled.jsonl:1 is not the row .* it has 0 grams .* the report says 8"):
        contamination_of(world / "corpus", "my test", examples_of(source), source)


def test_a_row_the_report_does_not_know(world):
    source = source_of(world)
    stranger = replace(examples_of(source)[0], where="other.jsonl:1")
    with pytest.raises(ValueError, match=r"other.jsonl:1 is none of the rows"):
        contamination_of(world / "corpus", "my test", [stranger], source)


def test_no_such_benchmark(world):
    with pytest.raises(ValueError, match=r"not looked through for 'lambada'; its .* are my test"):
        contamination_of(world / "corpus", "lambada", [], source_of(world))


def test_missing_report(world, tmp_path):
    shutil.copytree(world / "corpus", tmp_path / "corpus")
    report = tmp_path / "corpus" / "contamination" / "my_test.jsonl"
    report.write_text(report.read_text().split("\n", 1)[1])
    with pytest.raises(ValueError, match=r"my_test.jsonl cannot be read \(rows are missing\)"):
        contamination_of(tmp_path / "corpus", "my test", [], source_of(world))
    report.unlink()
    with pytest.raises(ValueError, match=r"has no contamination report my_test.jsonl"):
        contamination_of(tmp_path / "corpus", "my test", [], source_of(world))


def test_corpus_that_was_not_decontaminated(world, corpus, tmp_path):
    with pytest.raises(ValueError, match=r"was prepared without `decontaminate`"):
        contamination_of(corpus, "my test", [], source_of(world))
    with pytest.raises(ValueError, match=r"is not a prepared corpus"):
        contamination_of(tmp_path, "my test", [], source_of(world))


def test_scores_of_each_group(world):
    source = source_of(world)
    examples = examples_of(source)
    rows = contamination_of(world / "corpus", "my test", examples, source)
    # Right on each dirty row, on half of the clean ones, and on none that is too short.
    clean_seen = 0
    predictions = []
    for example, row in zip(examples, rows):
        clean_seen += row.group == "clean"
        right = row.group == "dirty" or (row.group == "clean" and clean_seen % 2 == 0)
        label = example.label if right else 1 - example.label
        predictions.append(Prediction(TASK.labels[label], label))
    result = clean_and_dirty(TASK, predictions, examples, rows)
    assert result["rows"] == {"all": 26, "clean": 16, "dirty": 8, "too_short": 2, "left_in_corpus": 0}
    accuracy = {group: scores["accuracy"] for group, scores in result["scores"].items()}
    assert accuracy["dirty"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert accuracy["clean"]["value"] == 0.5
    assert accuracy["all"]["value"] == pytest.approx(16 / 26)
    clean = [number for number, row in enumerate(rows) if row.group == "clean"]
    expected = score_with_intervals(TASK, [predictions[n] for n in clean], [examples[n] for n in clean])["accuracy"]
    assert (accuracy["clean"]["low"], accuracy["clean"]["high"]) == (expected.low, expected.high)
    assert result["difference"]["accuracy"]["value"] == -0.5
    assert result["difference"]["accuracy"]["high"] < 0.0
    assert result["relative_difference"]["accuracy"] == pytest.approx(0.5 / (16 / 26) - 1)
    lines = clean_and_dirty_lines("my test", result)
    assert "of 26 rows 8 dirty" in lines[0] and "16 clean, 2 too short to be checked" in lines[0]
    assert lines[1].startswith("  accuracy: all 61.5% [") and "clean against all -18.8%" in lines[1]
    assert "dirty 100.0% [100.0%, 100.0%]; clean minus dirty -50.0% [-" in lines[1]
    json.dumps(result)


def test_no_dirty_rows(world):
    source = source_of(world)
    examples = examples_of(source)[1:3]
    rows = [RowContamination("clean", False)] * 2
    predictions = [Prediction(TASK.labels[example.label], example.label) for example in examples]
    result = clean_and_dirty(TASK, predictions, examples, rows)
    assert result["scores"]["dirty"] is None and result["difference"] is None
    assert result["relative_difference"]["accuracy"] == 0.0
    assert "dirty no rows" in clean_and_dirty_lines("x", result)[1]


def test_one_entry_for_each_row(world):
    examples = examples_of(source_of(world))
    with pytest.raises(ValueError, match="26 rows have 0 predictions and 0 entries"):
        clean_and_dirty(TASK, [], examples, [])


def test_what_is_left_in_the_corpus_is_counted(world):
    examples = examples_of(source_of(world))[:2]
    predictions = [Prediction(TASK.labels[0], 0)] * 2
    rows = [RowContamination("dirty", True), RowContamination("clean", False)]
    assert clean_and_dirty(TASK, predictions, examples, rows)["rows"]["left_in_corpus"] == 1


def test_interval_of_a_difference():
    # Of two symmetric intervals: the half-widths add in squares.
    result = difference(Score(0.8, 0.77, 0.83), Score(0.5, 0.46, 0.54))
    assert (result.value, result.low, result.high) == pytest.approx((0.3, 0.25, 0.35))

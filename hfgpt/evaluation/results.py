"""What an evaluation found: numbers with their intervals, what was left out, and every prediction; as a table, as JSON,
and as files."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..tasks.metrics import CORPUS_METRICS, Score
from ..tasks.scoring import Prediction, answered_row
from .contamination import clean_and_dirty_lines
from .protocol import Asked


RESULTS_FILE = "results.json"
PREDICTIONS_FOLDER = "predictions"
# Rows of a kind that are named in a message.
NAMED_ROWS = 5


@dataclass
class TaskResult:
    """One task with one number of examples before each row.

    Attributes:
        task: Its name.
        language: Such as "ko" or "en-fr".
        shots: Examples before each row, K.
        rows: Rows that were asked.
        metrics: By name, the task's first one first; accuracy, macro_f1, f1 and exact_match in 0..1, chrf and bleu in
            0..100, with 95% intervals.
        baselines: The same of predictions that need no model, by their name.
        baseline_rows: What the baselines learnt from: "train", or "test" where there were no training rows.
        bad_rows: Rows that could not be asked; `bad_examples` names the first.
        passed_over: Rows left out on purpose, by reason.
        bad_train_rows: Rows that no examples could be made of; `bad_train_examples` names the first.
        cut_rows: Rows whose text was longer than the context and lost its `cut_side`; `cut_examples` names the first.
        fewer_shots: Rows with fewer than K examples, as more did not fit; `least_shots` is the smallest number.
        answer_tokens: Tokens of a written answer at most, where those are fewer than the task's; else None.
        split: Of the Hub dataset; None for rows from elsewhere.
        contamination: The same metrics of rows without and with an overlap with the pretraining corpus.
        predictions: One for each row, as they are saved.
    """

    task: str
    language: str
    shots: int
    rows: int
    metrics: dict[str, Score]
    baselines: dict[str, dict[str, Score]]
    baseline_rows: str
    bad_rows: int = 0
    bad_examples: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    bad_train_rows: int = 0
    bad_train_examples: list[str] = field(default_factory=list)
    cut_rows: int = 0
    cut_examples: list[str] = field(default_factory=list)
    cut_side: str = "end"
    fewer_shots: int = 0
    least_shots: int = 0
    answer_tokens: int | None = None
    split: str | None = None
    contamination: dict[str, Any] | None = None
    predictions: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the predictions."""
        values = asdict(self)
        del values["predictions"]
        return values

    def notes(self) -> list[str]:
        """What was left out, cut or changed, with the rows it befell."""
        name = f"{self.task}, {self.shots}-shot"
        lines = []
        if self.bad_rows:
            lines.append(
                f"{name}: {self.bad_rows} malformed rows left out: {_named(self.bad_examples, self.bad_rows)}"
            )
        if self.bad_train_rows:
            lines.append(
                f"{name}: {self.bad_train_rows} malformed training rows left out: "
                f"{_named(self.bad_train_examples, self.bad_train_rows)}"
            )
        if self.cut_rows:
            lines.append(
                f"{name}: {self.cut_rows} of {self.rows} texts were longer than the context and lost their "
                f"{self.cut_side}: {_named(self.cut_examples, self.cut_rows)}"
            )
        if self.fewer_shots:
            lines.append(
                f"{name}: {self.fewer_shots} of {self.rows} rows have fewer than {self.shots} examples before them (at "
                f"least {self.least_shots}), as no more fit"
            )
        if self.answer_tokens is not None:
            lines.append(f"{name}: answers have at most {self.answer_tokens} tokens, fewer than the task's")
        lines += [f"{name}: {count} rows passed over ({reason})" for reason, count in self.passed_over.items()]
        return lines


@dataclass
class EvaluationResult:
    """All that one evaluation found.

    Attributes:
        model: Its name.
        parameters: How many the model has.
        results: By task and number of examples.
        scorecard: Ours beside the paper's, as lines of text.
        perplexity: Of `hfgpt.evaluation.perplexity`, by file or corpus.
        harness: What lm-evaluation-harness says of the same model.
        unsaved: Why the results could not be saved; "" where they were, or were not to be.
    """

    model: str
    parameters: int
    results: list[TaskResult] = field(default_factory=list)
    scorecard: list[str] = field(default_factory=list)
    perplexity: dict[str, Any] = field(default_factory=dict)
    harness: dict[str, Any] | None = None
    unsaved: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the predictions."""
        values = {"model": self.model, "parameters": self.parameters}
        values["results"] = [result.as_dict() for result in self.results]
        for name in ("scorecard", "perplexity", "harness"):
            if getattr(self, name):
                values[name] = getattr(self, name)
        return values

    def table(self) -> list[str]:
        """The numbers as lines of text."""
        header = ["task", "lang", "shots", "rows", "metric", "value", "95% interval", "baseline", "its 95% interval"]
        rows = [header]
        for result in self.results:
            for metric, score in result.metrics.items():
                rows.append(
                    [
                        result.task,
                        result.language,
                        str(result.shots),
                        str(result.rows),
                        metric,
                        show(metric, score.value),
                        show_interval(metric, score),
                        *_best_baseline(metric, result.baselines),
                    ]
                )
        return _aligned(rows)

    def lines(self) -> list[str]:
        """The table, the perplexities, the scorecard, and the harness's table."""
        blocks = [self.table() if self.results else []]
        for result in self.results:
            if result.contamination is not None:
                blocks.append(clean_and_dirty_lines(f"{result.task}, {result.shots}-shot", result.contamination))
        blocks.append([perplexity_line(name, values) for name, values in self.perplexity.items()])
        blocks.append(self.scorecard)
        if self.harness:
            from .harness import harness_lines

            blocks.append(harness_lines([result.as_dict() for result in self.results], self.harness))
        lines: list[str] = []
        for block in blocks:
            lines += [""] * bool(lines and block) + block
        return lines

    def notes(self) -> list[str]:
        """What was left out, cut or changed anywhere."""
        lines = [note for result in self.results for note in result.notes()]
        return lines + [
            f"{name}: {values['bad_rows']} malformed rows left out: "
            f"{_named(values['bad_examples'], values['bad_rows'])}"
            for name, values in self.perplexity.items()
            if values["bad_rows"]
        ]

    def save(self, folder: str | Path) -> None:
        """Write `results.json`, and `predictions/TASK-Kshot.jsonl` with a line for each row; where tasks share a name the
        later ones' files end in a number.

        Raises:
            OSError: The folder cannot be written.
        """
        folder = Path(folder)
        (folder / PREDICTIONS_FOLDER).mkdir(parents=True, exist_ok=True)
        # Files are written over each other on some disks where only case differs.
        written: Counter[str] = Counter()
        for result in self.results:
            task = re.sub(r"[^\w.-]+", "_", result.task)
            name = f"{task}-{result.shots}shot"
            written[name.lower()] += 1
            if written[name.lower()] > 1:
                name += f"-{written[name.lower()]}"
            path = folder / PREDICTIONS_FOLDER / f"{name}.jsonl"
            lines = (to_json(prediction) + "\n" for prediction in result.predictions)
            path.write_text("".join(lines), encoding="utf-8")
        (folder / RESULTS_FILE).write_text(to_json(self.as_dict(), indent=2) + "\n", encoding="utf-8")


def to_json(values: Any, indent: int | None = None) -> str:
    """Values as JSON that any reader takes: null where a number is infinite or none."""
    return json.dumps(_with_nulls(values), ensure_ascii=False, allow_nan=False, indent=indent)


def _with_nulls(values: Any) -> Any:
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: _with_nulls(value) for key, value in values.items()}
    return [_with_nulls(value) for value in values] if isinstance(values, (list, tuple)) else values


def prediction_row(asked: Asked, prediction: Prediction, correct: bool) -> dict[str, Any]:
    """What is saved of one row; `shots` names the rows before it."""
    values = {**answered_row(asked.row, prediction), "correct": correct}
    if asked.row.choices:
        values["choices"] = list(asked.row.choices)
    if asked.shots:
        values["shots"] = [shot.where for shot in asked.shots]
    if asked.cut_tokens:
        values["cut_tokens"] = asked.cut_tokens
    return values


def show(metric: str, value: float) -> str:
    """A metric's value as people read it: shares in percent."""
    return f"{value:.1f}" if metric in CORPUS_METRICS else f"{100 * value:.1f}%"


def show_interval(metric: str, score: Score) -> str:
    """The interval of a value."""
    return f"{show(metric, score.low)} to {show(metric, score.high)}"


def perplexity_line(name: str, values: Mapping[str, Any]) -> str:
    """What is said of one text's perplexity."""
    bits = values["bits_per_byte"]
    shown = f", {bits:.4f} bits per byte" if bits is not None else ""
    return (
        f"{name}: perplexity {values['perplexity']:.3f} per token{shown} ({values['tokens']:,} tokens, windows of "
        f"{values['window']} every {values['stride']})"
    )


def curve_lines(result: Mapping[str, Any], plot: str | Path) -> list[str]:
    """What `hfgpt.evaluation.curve.curve` found, for reading.

    Args:
        result: Its result.
        plot: Where it was drawn.
    """
    metric = result["metric"]
    points = {(point["start"], point["labels"]): point for point in result["points"]}
    table = [["labels", *(f"{start} weights" for start in ("pretrained", "random")), "difference"]]
    for difference in result["differences"]:
        labels = difference["labels"]
        shown = (points["pretrained", labels], points["random", labels], difference)
        table.append([f"{labels:,}", *(_show_mean(metric, point) for point in shown)])
    known = ", ".join(f"{name} {show(metric, value)}" for name, value in result["baselines"].items())
    seeds = len(result["points"][0]["values"])
    return [
        f"{result['task']}: {metric} of {result['test_rows']:,} test rows after fine-tuning with few labels and many "
        f"({known}). Mean of {seeds} seeds{', with its 95% interval' if seeds > 1 else ''}.",
        "",
        *_aligned(table),
        "",
        f"drawn in {plot}",
    ]


def _show_mean(metric: str, point: Mapping[str, Any]) -> str:
    if point["low"] is None:
        return show(metric, point["mean"])
    return f"{show(metric, point['mean'])} ({show(metric, point['low'])} to {show(metric, point['high'])})"


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in table]


def _best_baseline(metric: str, baselines: Mapping[str, Mapping[str, Score]]) -> tuple[str, str]:
    there = {name: scores[metric] for name, scores in baselines.items() if metric in scores}
    if not there:
        return "", ""
    name = max(there, key=lambda name: there[name].value)
    return f"{name} {show(metric, there[name].value)}", show_interval(metric, there[name])


def _named(rows: list[str], count: int) -> str:
    more = f", and {count - NAMED_ROWS} more" if count > NAMED_ROWS else ""
    return "; ".join(rows[:NAMED_ROWS]) + more

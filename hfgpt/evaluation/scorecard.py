"""Our scores beside those that the paper prints for the same size: table H.1 as data.

A number is comparable where number of examples, split and metric are the same: what differs is said with each of them.
Scores of the table are in percent, ours of accuracy, F1 and exact match in 0..1; here all are in percent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..model.presets import PRESETS


# A model whose parameters are within this factor of a preset's is of its size: other vocabularies and positions change
# the small ones by a tenth, and neighbours in the table are more than twice as large as one another.
SAME_SIZE = 1.25


@dataclass(frozen=True)
class PublishedScores:
    """A row of table H.1 in one setting.

    Attributes:
        task: Our name of the benchmark.
        shots: Examples before each row; 0 for the table's zero-shot column, its K for the few-shot one.
        metric: As the table calls it.
        names: What that is among our metrics.
        split: That the table's scores are of.
        rows: Rows of that split.
        scores: In percent, from 125M to 175B, as `PRESETS`.
        note: What can never be the same here; "" where nothing.
    """

    task: str
    shots: int
    metric: str
    names: tuple[str, ...]
    split: str
    rows: int
    scores: tuple[float, ...]
    note: str = ""

    @property
    def by_preset(self) -> dict[str, float]:
        """`scores` by the name of the preset."""
        return dict(zip(PRESETS, self.scores))


ACCURACY = ("accuracy", "exact_match")
# Source: Brown et al. 2020, table H.1; those tasks that we define. Rows of the splits are the data sets' own.
PUBLISHED = (
    PublishedScores(
        "lambada", 0, "accuracy", ACCURACY, "test", 5153, (42.7, 54.3, 60.4, 63.6, 67.1, 70.3, 72.5, 76.2)
    ),
    PublishedScores(
        "hellaswag", 0, "accuracy", ACCURACY, "dev", 10042, (33.7, 43.6, 51.0, 54.7, 62.8, 67.4, 70.9, 78.9)
    ),
    PublishedScores("piqa", 0, "accuracy", ACCURACY, "dev", 1838, (64.6, 70.2, 72.9, 75.1, 75.6, 78.0, 78.5, 81.0)),
    PublishedScores(
        "winogrande", 0, "accuracy", ACCURACY, "dev", 1267, (52.0, 52.1, 57.4, 58.7, 62.3, 64.5, 67.9, 70.2)
    ),
    PublishedScores(
        "arc-easy", 0, "accuracy", ACCURACY, "test", 2376, (43.6, 46.5, 53.0, 53.8, 58.2, 60.2, 63.8, 68.8)
    ),
    PublishedScores(
        "storycloze", 0, "accuracy", ACCURACY, "test", 1871, (63.3, 68.5, 72.4, 73.4, 77.2, 77.7, 79.5, 83.2)
    ),
    PublishedScores(
        "triviaqa", 64, "accuracy", ("exact_match",), "dev", 7993, (6.96, 16.3, 26.5, 32.1, 42.3, 51.6, 57.5, 71.2)
    ),
    PublishedScores(
        "squadv2",
        16,
        "F1",
        ("f1",),
        "dev",
        11873,
        (32.1, 45.5, 44.9, 58.7, 55.9, 62.1, 67.7, 69.8),
        note="the paper asks the questions of a passage one after the other, with their answers; here each is asked alone",
    ),
    PublishedScores(
        "wmt14-fr-en",
        64,
        "BLEU",
        ("bleu",),
        "test",
        3003,
        (5.30, 26.2, 29.5, 32.2, 35.1, 36.4, 38.3, 41.4),
        note="the paper's BLEU is multi-bleu's, of its own tokenization; ours is sacrebleu's",
    ),
)
# Ours in 0..1.
SHARES = ("accuracy", "exact_match", "f1")
# The Hub's names of splits, as the table calls them.
SPLITS = {"validation": "dev"}


def nearest_preset(parameters: int) -> str:
    """The preset whose number of parameters is nearest, by ratio.

    Raises:
        ValueError: `parameters` is not above 0.
    """
    if parameters <= 0:
        raise ValueError(f"`parameters` must be above 0, got {parameters}.")
    return min(PRESETS, key=lambda name: abs(math.log(parameters / PRESETS[name].num_parameters)))


def compared_presets(parameters: int) -> list[str]:
    """The presets a model is compared with: the one of its size, else its neighbours, else the smallest or the largest."""
    nearest = nearest_preset(parameters)
    size = PRESETS[nearest].num_parameters
    if 1 / SAME_SIZE <= parameters / size <= SAME_SIZE:
        return [nearest]
    smaller = [name for name, preset in PRESETS.items() if preset.num_parameters < parameters]
    larger = [name for name, preset in PRESETS.items() if preset.num_parameters > parameters]
    return [*smaller[-1:], *larger[:1]]


def size_sentence(parameters: int) -> str:
    """What a model of so many parameters is compared with, in words."""
    presets = compared_presets(parameters)
    described = " and ".join(f"{name} ({PRESETS[name].num_parameters:,})" for name in presets)
    if len(presets) == 2:
        return f"{parameters:,} parameters are between {described}: both are shown"
    if parameters * SAME_SIZE < PRESETS[presets[0]].num_parameters:
        return f"{parameters:,} parameters are fewer than any published model has; the smallest is {described}"
    if parameters > PRESETS[presets[0]].num_parameters * SAME_SIZE:
        return f"{parameters:,} parameters are more than any published model has; the largest is {described}"
    return f"{parameters:,} parameters are the size of {described}"


def scorecard(results: Sequence[Mapping[str, Any]], parameters: int) -> list[dict[str, Any]]:
    """Our results on the benchmarks of table H.1, each with the paper's.

    Args:
        results: Mappings with `task`, `shots`, `rows`, `metrics` ({name: {value, low, high}}), and `split`
            where it is known. Those that the table does not have are left out.
        parameters: Of our model.

    Returns:
        For each `task`, `shots`, `rows`, `metric`; `value`, `low`, `high` and `paper` ({preset: score}) in
        percent; `same_protocol`, and `differences` in words.

    Raises:
        ValueError: `parameters` is not above 0.
    """
    presets = compared_presets(parameters)
    rows = []
    for result in results:
        published = _published(result)
        if published is None:
            continue
        name = next(name for name in published.names if name in result["metrics"])
        ours = result["metrics"][name]
        scale = 100.0 if name in SHARES else 1.0
        differences = _differences(result, published)
        rows.append(
            {
                "task": published.task,
                "shots": result["shots"],
                "rows": result["rows"],
                "metric": published.metric,
                **{key: ours[key] * scale for key in ("value", "low", "high")},
                "paper": {preset: published.by_preset[preset] for preset in presets},
                "same_protocol": not differences,
                "differences": differences,
            }
        )
    return rows


def _published(result: Mapping[str, Any]) -> PublishedScores | None:
    for published in PUBLISHED:
        if result["task"] == published.task and any(name in result["metrics"] for name in published.names):
            return published
    return None


def _differences(result: Mapping[str, Any], published: PublishedScores) -> list[str]:
    differences = []
    if result["shots"] != published.shots:
        differences.append(f"{_shots(result['shots'])}, the paper's {_shots(published.shots)}")
    split = result.get("split")
    if split is not None and SPLITS.get(split, split) != published.split:
        differences.append(f"{split} split, the paper's {published.split}")
    if result["rows"] != published.rows:
        differences.append(f"{result['rows']:,} rows, the paper's {published.split} split has {published.rows:,}")
    if published.note:
        differences.append(published.note)
    return differences


def _shots(count: int) -> str:
    return "zero-shot" if count == 0 else f"{count} example{'s' if count > 1 else ''}"


def scorecard_lines(results: Sequence[Mapping[str, Any]], parameters: int) -> list[str]:
    """The scorecard for reading; empty where no result is in table H.1.

    Raises:
        ValueError: `parameters` is not above 0.
    """
    rows = scorecard(results, parameters)
    if not rows:
        return []
    presets = compared_presets(parameters)
    table = [
        ["", "examples", "metric", "ours, %", "95% interval", *presets, *(["difference"] if len(presets) == 1 else [])]
    ]
    notes = []
    for row in rows:
        cells = [
            row["task"],
            str(row["shots"]),
            row["metric"],
            f"{row['value']:.1f}",
            f"{row['low']:.1f} to {row['high']:.1f}",
            *(f"{score:.1f}" for score in row["paper"].values()),
        ]
        if len(presets) == 1:
            cells.append(f"{row['value'] - row['paper'][presets[0]]:+.1f}")
        if row["differences"]:
            cells[0] += "*"
            notes.append(f"* {row['task']}, {_shots(row['shots'])}: {'; '.join(row['differences'])}")
        table.append(cells)
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    lines = [f"Beside table H.1 of Brown et al. 2020. {size_sentence(parameters)}.", ""]
    for cells in table:
        first, *rest = (
            f"{cell:{'<' if column in (0, 2) else '>'}{width}}"
            for column, (cell, width) in enumerate(zip(cells, widths))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return [*lines, *(["", "* Not the paper's protocol:", *notes] if notes else [])]


__all__ = ["PUBLISHED", "PublishedScores", "nearest_preset", "scorecard", "scorecard_lines"]

"""Scores on the clean and the dirty rows of a benchmark, as appendix C of the paper looks at contamination.

A row is dirty where words of it were in the training corpus, by the report that `hfgpt prepare` wrote of it
(`contamination/NAME.jsonl`): before they were cut, so that a model of this corpus has seen no more of them than what
was left as a common phrase. Rows with texts of under 13 words alone cannot be checked (the paper looks for such texts as
a whole); they are neither, and counted.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config import from_mapping
from ..data.corpus import CONTAMINATION_FOLDER
from ..data.decontaminate import BenchmarkConfig, read_examples, split_words
from ..data.packing import read_metadata
from ..data.readers import RowErrors, SourceConfig, WantedRows, numbered_rows
from ..tasks.base import Example, Task
from ..tasks.metrics import CORPUS_METRICS, Score, score_with_intervals
from ..tasks.scoring import Prediction


CLEAN, DIRTY, TOO_SHORT = "clean", "dirty", "too short"


@dataclass(frozen=True)
class RowContamination:
    """What a corpus had of one row of a benchmark.

    Attributes:
        group: "clean", "dirty", or "too short" to be checked.
        left_in_corpus: Words of it still are in the corpus.
    """

    group: str
    left_in_corpus: bool


def contamination_of(
    corpus: str | Path, name: str, examples: Sequence[Example], source: SourceConfig
) -> list[RowContamination]:
    """What the corpus had of each example, found by its file and line.

    The benchmark is read again as the corpus' recipe read it, from where it is now, and each of its rows is compared
    with the report by how many grams it has: another file, or another order, is noticed.

    Args:
        corpus: Folder of a corpus that was prepared with `decontaminate`.
        name: Of the benchmark there (`decontaminate.benchmarks`).
        examples: Those evaluated, with `where`; all of the benchmark's or some.
        source: Where they were read from.

    Raises:
        ValueError: The corpus has no such report, or it is of other rows.
    """
    benchmark, ngram_words = _benchmark(corpus, name)
    report = _read_report(corpus, benchmark)
    benchmark = replace(
        benchmark,
        path=source.path,
        dataset=source.dataset,
        dataset_config=source.dataset_config,
        dataset_split=source.dataset_split,
        format=source.format,
    )
    texts = list(read_examples(benchmark, RowErrors()))
    places = _places(benchmark)
    if not len(report) == len(texts) == len(places):
        raise ValueError(
            f"The report of {name!r} in {corpus} is of {len(report):,} rows, and {_described(source)} has {len(texts):,}: "
            "evaluate the rows that `decontaminate.benchmarks` named, or prepare the corpus anew."
        )
    for place, row_texts, row in zip(places, texts, report):
        grams = _count_grams(row_texts, ngram_words)
        if grams != row["grams"]:
            raise ValueError(
                f"{place} is not the row that the report of {name!r} in {corpus} has in its place: it has {grams} "
                f"grams of {ngram_words} words, the report says {row['grams']}. Evaluate the rows that "
                "`decontaminate.benchmarks` named, in their order, or prepare the corpus anew."
            )
    by_place = dict(zip(places, report))
    found = []
    for example in examples:
        if example.where not in by_place:
            raise ValueError(
                f"{example.where or 'A row'} is none of the rows that the report of {name!r} in {corpus} is about: give "
                "the same `where`, `part` and `max_rows` as its recipe does."
            )
        row = by_place[example.where]
        group = TOO_SHORT if row["grams"] == 0 else DIRTY if row["dirty"] else CLEAN
        found.append(RowContamination(group, row["left_in_corpus"]))
    return found


def _benchmark(corpus: str | Path, name: str) -> tuple[BenchmarkConfig, int]:
    """The benchmark as the corpus' recipe has it, and the words of a gram."""
    recipe = read_metadata(corpus).get("recipe") or {}
    decontaminate = recipe.get("decontaminate")
    if not decontaminate:
        raise ValueError(
            f"{corpus} was prepared without `decontaminate`: which rows were in it is not known. Name the benchmark in "
            "its recipe and prepare it anew."
        )
    named = {values["name"]: values for values in decontaminate["benchmarks"]}
    if name not in named:
        raise ValueError(
            f"{corpus} was not looked through for {name!r}; its `decontaminate.benchmarks` are {', '.join(named)}."
        )
    return from_mapping(BenchmarkConfig, named[name], f"the recipe of {corpus}"), decontaminate["ngram_words"]


def _read_report(corpus: str | Path, benchmark: BenchmarkConfig) -> list[dict[str, Any]]:
    path = Path(corpus) / CONTAMINATION_FOLDER / f"{benchmark.file_name}.jsonl"
    try:
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        if [row["index"] for row in rows] != list(range(len(rows))):
            raise ValueError("rows are missing")
        for key in ("dirty", "left_in_corpus", "grams"):
            _ = [row[key] for row in rows]
    except FileNotFoundError:
        raise ValueError(f"{corpus} has no contamination report {path.name}: prepare it anew.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): prepare the corpus anew.") from None
    return rows


def _places(benchmark: BenchmarkConfig) -> list[str]:
    """File and line of each row that `read_examples` takes."""
    wanted = WantedRows(benchmark)
    places = [
        f"{file}:{line}"
        for file, line, row in numbered_rows(benchmark, RowErrors())
        if not wanted.why_not(row) and any(_has_text(row[name]) for name in benchmark.fields or [])
    ]
    return places[: benchmark.max_rows]


def _has_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(map(_has_text, parts))


def _count_grams(texts: Sequence[str], ngram_words: int) -> int:
    grams: set[tuple[str, ...]] = set()
    for text in texts:
        words = split_words(text)
        grams.update(tuple(words[start : start + ngram_words]) for start in range(len(words) - ngram_words + 1))
    return len(grams)


def _described(source: SourceConfig) -> str:
    return f"{source.dataset} ({source.dataset_split})" if source.dataset else ", ".join(source.paths)


def clean_and_dirty(
    task: Task,
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    contamination: Sequence[RowContamination],
) -> dict[str, Any]:
    """Scores over all rows, the clean and the dirty ones, with 95% intervals.

    Args:
        task: Names the metrics.
        predictions, examples: One each for each row.
        contamination: Of each row, by `contamination_of`.

    Returns:
        `rows`: {all, clean, dirty, too_short, left_in_corpus}; `scores`: of all, clean and dirty
        {metric: {value, low, high}}, None where there are no such rows; `difference`: clean minus dirty, in the same
        form, None without either; `relative_difference`: {metric: clean / all - 1}, table C.1's measure, None where it
        is not defined.

    Raises:
        ValueError: Not one of them for each row.
    """
    if not len(predictions) == len(examples) == len(contamination):
        raise ValueError(
            f"{len(examples):,} rows have {len(predictions):,} predictions and {len(contamination):,} entries of "
            "contamination: one of each is needed."
        )
    counts = Counter(row.group for row in contamination)
    scores: dict[str, dict[str, Score] | None] = {}
    for group in ("all", CLEAN, DIRTY):
        chosen = [number for number, row in enumerate(contamination) if group in ("all", row.group)]
        scores[group] = (
            score_with_intervals(
                task, [predictions[number] for number in chosen], [examples[number] for number in chosen]
            )
            if chosen
            else None
        )
    every, clean, dirty = (scores[group] for group in ("all", CLEAN, DIRTY))
    names = [name for name in every or {} if name in (clean or {})]
    return {
        "rows": {
            "all": len(examples),
            "clean": counts[CLEAN],
            "dirty": counts[DIRTY],
            "too_short": counts[TOO_SHORT],
            "left_in_corpus": sum(row.left_in_corpus for row in contamination),
        },
        "scores": {group: of_group and _as_dicts(of_group) for group, of_group in scores.items()},
        "difference": _as_dicts({name: difference(clean[name], dirty[name]) for name in names})
        if clean and dirty
        else None,
        "relative_difference": {
            name: clean[name].value / every[name].value - 1.0 if every[name].value else None for name in names
        }
        if clean and every
        else None,
    }


def difference(first: Score, second: Score) -> Score:
    """The difference of two independent scores, with the interval that theirs imply.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures: a general approach".
    """
    value = first.value - second.value
    return Score(
        value,
        value - math.hypot(first.value - first.low, second.high - second.value),
        value + math.hypot(first.high - first.value, second.value - second.low),
    )


def _as_dicts(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    return {name: asdict(score) for name, score in scores.items()}


def clean_and_dirty_lines(name: str, result: Mapping[str, Any]) -> list[str]:
    """What `clean_and_dirty` gave, for reading.

    Args:
        name: Of the benchmark.
        result: Its result.
    """
    rows, scores = result["rows"], result["scores"]
    lines = [
        f"{name}: of {rows['all']:,} rows {rows['dirty']:,} dirty (words of them were in the corpus before it was "
        f"decontaminated; of {rows['left_in_corpus']:,} some still are), {rows['clean']:,} clean, "
        f"{rows['too_short']:,} too short to be checked"
    ]
    for metric in scores["all"]:
        parts = [
            f"{group} {_in_words(metric, scores[group][metric])}"
            if (scores[group] or {}).get(metric)
            else f"{group} no rows"
            for group in ("all", CLEAN, DIRTY)
        ]
        if metric in (result["difference"] or {}):
            parts.append(f"clean minus dirty {_in_words(metric, result['difference'][metric], '+')}")
        relative = (result["relative_difference"] or {}).get(metric)
        if relative is not None:
            parts.append(f"clean against all {relative:+.1%}")
        lines.append(f"  {metric}: {'; '.join(parts)}")
    return lines


def _in_words(metric: str, score: Mapping[str, float], sign: str = "") -> str:
    """Shares in percent."""
    form = f"{sign}.1f" if metric in CORPUS_METRICS else f"{sign}.1%"
    return f"{score['value']:{form}} [{score['low']:{form}}, {score['high']:{form}}]"


__all__ = ["RowContamination", "clean_and_dirty", "clean_and_dirty_lines", "contamination_of", "difference"]

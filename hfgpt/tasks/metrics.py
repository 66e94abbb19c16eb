"""Metrics of predictions, with bootstrap intervals, and the naive baselines that a model has to beat.

Every metric is a function of sums over rows: accuracy of hits, chrF and BLEU of matched n-grams. So an interval draws
rows anew by weighing their statistics, a matrix product, and reads no text twice. All of it works offline.
"""

import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import ChoiceTask, Example, Task, TextTask
from .scoring import Prediction


if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

# Of classes, in 0..1; of texts, in 0..1; of texts by sacrebleu over the whole corpus, in 0..100.
CLASS_METRICS = ("accuracy", "macro_f1")
ANSWER_METRICS = ("exact_match", "f1", "char_f1")
CORPUS_METRICS = ("chrf", "bleu", "bleu_char")
METRICS = (*CLASS_METRICS, *ANSWER_METRICS, *CORPUS_METRICS)

HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
ARTICLES = re.compile(r"\b(a|an|the)\b")
# Rows that the best constant answer is looked for in, and answers that are tried.
CONSTANT_ROWS = 100
# Weights of rows held at once while rows are drawn anew.
MAX_WEIGHTS = 4_000_000

# What a metric says of each row, (rows, n), and its value by the sums of that, (..., n) to (...).
Statistics = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class Score:
    """A value with its bootstrap interval.

    Attributes:
        value: Of the rows as they are.
        low, high: Percentiles of the value on rows drawn anew, with replacement; 2.5 and 97.5 by default.
    """

    value: float
    low: float
    high: float


def check_metrics(task: Task) -> None:
    """Raise a `ValueError` for a metric that there is not, or that does not suit the task."""
    for name in task.metrics:
        if name not in METRICS:
            raise ValueError(f"Unknown metric {name!r} of task {task.name!r}; the metrics are {', '.join(METRICS)}.")
        if name in CLASS_METRICS and not isinstance(task, ChoiceTask):
            raise ValueError(
                f"Metric {name!r} of task {task.name!r} needs choices; for free text there are "
                f"{', '.join((*ANSWER_METRICS, *CORPUS_METRICS))}."
            )


def score(task: Task, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
    """The task's `metrics` of its predictions.

    `accuracy`, `macro_f1` (over the classes that occur; left out where each row brings its own choices), `exact_match`,
    `f1` and `char_f1` are in 0..1; `chrf`, `bleu` and `bleu_char` in 0..100. With several references the best counts.

    Args:
        task: Names the metrics.
        predictions: One for each example.
        examples: Rows with their answers.

    Raises:
        ValueError: An unknown metric, a row without an answer, no rows, or other numbers of predictions than of rows.
    """
    return {
        name: float(from_sums(rows.sum(axis=0)))
        for name, (rows, from_sums) in _all_statistics(task, predictions, examples).items()
    }


def score_with_intervals(
    task: Task,
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Score]:
    """As `score`, with percentile bootstrap intervals over rows.

    The same seed and number of rows draw the same rows, so that two models' intervals on one test split are of the
    same resamples.

    Args:
        task, predictions, examples: As of `score`.
        resamples: How often rows are drawn anew.
        confidence: Share of the resamples inside the interval.
        seed: Of the drawing.

    Raises:
        ValueError: As `score`; or `resamples` or `confidence` is out of range.
    """
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"`resamples` must be at least 1 and `confidence` between 0 and 1, got {resamples} and {confidence}."
        )
    every = _all_statistics(task, predictions, examples)
    sums: dict[str, list[np.ndarray]] = {name: [] for name in every}
    generator = np.random.default_rng(seed)
    count, drawn = len(examples), 0
    while drawn < resamples:
        chunk = min(resamples - drawn, max(MAX_WEIGHTS // count, 1))
        # How often each row is drawn, by resample.
        picks = generator.integers(count, size=(chunk, count)) + np.arange(chunk)[:, None] * count
        weights = np.bincount(picks.ravel(), minlength=chunk * count).reshape(chunk, count).astype(np.float64)
        for name, (rows, _) in every.items():
            sums[name].append(weights @ rows)
        drawn += chunk
    tail = (1.0 - confidence) / 2.0
    scores = {}
    for name, (rows, from_sums) in every.items():
        low, high = np.quantile(from_sums(np.concatenate(sums[name])), [tail, 1.0 - tail])
        scores[name] = Score(float(from_sums(rows.sum(axis=0))), float(low), float(high))
    return scores


def signature(metric: str) -> str:
    """How a metric is computed, to be reported beside its value: sacrebleu's signature for chrF and BLEU."""
    if metric in CORPUS_METRICS:
        scorer: Any = _corpus_scorer(metric)
        # Resolved where references are read; here of one.
        scorer.num_refs = 1
        return str(scorer.get_signature())
    descriptions = {
        "accuracy": "share of rows whose label is right",
        "macro_f1": "F1 of each class that occurs, averaged (scikit-learn's f1_score, average=macro)",
        "exact_match": "SQuAD's normalization",
        "f1": "F1 over words, SQuAD's normalization",
        "char_f1": "F1 over characters, as KorQuAD's, SQuAD's normalization",
    }
    if metric not in descriptions:
        raise ValueError(f"Unknown metric {metric!r}; the metrics are {', '.join(METRICS)}.")
    return descriptions[metric]


def normalize_answer(text: str) -> str:
    """An answer as exact match and F1 compare it: lower case, no punctuation, no English articles, single spaces.

    Punctuation is ASCII's, as in SQuAD; in text with Hangul all of Unicode's, and an `a` is no article there.
    Source: the evaluation script of SQuAD (Rajpurkar et al. 2016).
    """
    text = unicodedata.normalize("NFC", text).lower()
    if HANGUL.search(text):
        text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    else:
        text = "".join(c for c in text if c not in string.punctuation)
        text = ARTICLES.sub(" ", text)
    return " ".join(text.split())


def token_f1(prediction: str, reference: str) -> float:
    """F1 over the words of two normalized answers. Source: the evaluation script of SQuAD 2.0."""
    return _overlap_f1(normalize_answer(prediction).split(), normalize_answer(reference).split())


def char_f1(prediction: str, reference: str) -> float:
    """F1 over the characters of two normalized answers, white space aside.

    For Korean: its words carry particles (`서울`, `서울에서`), so that a right answer of another ending shares no word
    with the reference. Source: KorQuAD's evaluation, which counts characters (Lim et al. 2019).
    """
    return _overlap_f1(normalize_answer(prediction).replace(" ", ""), normalize_answer(reference).replace(" ", ""))


def _overlap_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    if not prediction or not reference:
        # Nothing is left of either: right where nothing is left of both.
        return float(prediction == reference)
    shared = (Counter(prediction) & Counter(reference)).total()
    return 2 * shared / (len(prediction) + len(reference))


def _exact_match(prediction: str, reference: str) -> float:
    return float(normalize_answer(prediction) == normalize_answer(reference))


def _all_statistics(
    task: Task, predictions: Sequence[Prediction], examples: Sequence[Example]
) -> dict[str, Statistics]:
    check_metrics(task)
    if not examples or len(predictions) != len(examples):
        raise ValueError(
            f"A score needs a prediction for each row and at least one row, got {len(predictions)} predictions and "
            f"{len(examples)} rows."
        )
    for example in examples:
        if not example.references:
            raise ValueError(f"{example.where or 'A row'} has no answer to compare with.")
    # Where each row brings its own choices their indices are no classes.
    no_classes = isinstance(task, ChoiceTask) and not task.labels
    return {
        name: _statistics(name, predictions, examples)
        for name in task.metrics
        if not (name == "macro_f1" and no_classes)
    }


def _statistics(name: str, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Statistics:
    if name in CLASS_METRICS:
        predicted = np.array([-1 if prediction.label is None else prediction.label for prediction in predictions])
        actual = np.array([-1 if example.label is None else example.label for example in examples])
        return _accuracy(predicted, actual) if name == "accuracy" else _macro_f1(predicted, actual)
    texts = [prediction.text for prediction in predictions]
    references = [example.references for example in examples]
    if name in CORPUS_METRICS:
        return _corpus_statistics(name, texts, references)
    compare = {"exact_match": _exact_match, "f1": token_f1, "char_f1": char_f1}[name]
    return _mean([max(compare(text, answer) for answer in answers) for text, answers in zip(texts, references)])


def _mean(values: Any) -> Statistics:
    rows = np.asarray(values, dtype=np.float64)[:, None]
    return rows, lambda sums: sums[..., 0] / len(rows)


def _accuracy(predicted: np.ndarray, actual: np.ndarray) -> Statistics:
    return _mean(predicted == actual)


def _macro_f1(predicted: np.ndarray, actual: np.ndarray) -> Statistics:
    """Of hits and of how often each class is predicted and right, so that rows can be drawn anew without scikit-learn."""
    classes = np.unique(np.concatenate([predicted, actual]))
    is_predicted, is_actual = predicted[:, None] == classes, actual[:, None] == classes
    rows = np.concatenate([is_predicted & is_actual, is_predicted, is_actual], axis=1).astype(np.float64)

    def from_sums(sums: np.ndarray) -> np.ndarray:
        hits, guesses, truths = np.split(sums, 3, axis=-1)
        occurs = guesses + truths > 0
        f1 = 2 * hits / np.where(occurs, guesses + truths, 1)
        return f1.sum(axis=-1) / occurs.sum(axis=-1)

    return rows, from_sums


def _corpus_scorer(name: str) -> "Metric":
    from sacrebleu.metrics import BLEU, CHRF

    if name == "chrf":
        return CHRF()
    # Korean words carry particles and endings. sacrebleu's `ko-mecab` needs a dictionary to be built; characters do not.
    return BLEU(tokenize="char" if name == "bleu_char" else "13a", force=True)


def _corpus_statistics(name: str, texts: list[str], references: list[tuple[str, ...]]) -> Statistics:
    scorer = _corpus_scorer(name)
    # The statistics of rows, which sacrebleu's public `corpus_score` keeps to itself: its own resampling is seeded by the
    # environment alone, and leaves mean and half-width, not percentiles.
    streams = [
        [answers[index] if index < len(answers) else None for answers in references]
        for index in range(max(map(len, references)))
    ]
    rows = np.asarray(scorer._extract_corpus_statistics(texts, streams), dtype=np.float64)  # type: ignore[arg-type]

    def from_sums(sums: np.ndarray) -> np.ndarray:
        each = [scorer._compute_score_from_stats(list(row)).score for row in sums.reshape(-1, sums.shape[-1])]
        return np.array(each).reshape(sums.shape[:-1])

    return rows, from_sums


def baselines(
    task: Task, train: Sequence[Example], test: Sequence[Example], seed: int = 0
) -> dict[str, list[Prediction]]:
    """What needs no model. A model is to be compared with the best of them.

    For choices "majority", the commonest class of the training rows; for an answer out of a context "random_span", as many
    words in a row of it as a training answer has; for other text "copy", which says the source again, and "constant",
    the training answer that by the task's first metric is closest to others.

    Args:
        task: What is asked.
        train: Rows that a baseline may learn from.
        test: Rows to predict.
        seed: Of what is drawn.

    Raises:
        ValueError: There are no training rows, or the task has a metric that there is not.
    """
    check_metrics(task)
    if not train:
        raise ValueError("Baselines need training rows.")
    if isinstance(task, ChoiceTask):
        counts = Counter(example.label for example in train if example.label is not None)
        # The first of equals, whatever the order of rows.
        majority = min(counts, key=lambda label: (-counts[label], label))
        return {"majority": [_choice(task, example, majority) for example in test]}
    generator = random.Random(seed)
    if isinstance(task, TextTask) and task.context_field:
        lengths = [len(example.references[0].split()) for example in train]
        is_cut = (task.cut_field or task.prompt_fields[-1]) == task.context_field
        return {
            "random_span": [
                _random_span(example.text if is_cut else example.prompt, generator.choice(lengths), generator)
                for example in test
            ]
        }
    constant = Prediction(_best_constant(task, train, generator))
    return {"copy": [Prediction(example.text.strip()) for example in test], "constant": [constant] * len(test)}


def _choice(task: ChoiceTask, example: Example, label: int) -> Prediction:
    if task.labels:
        return Prediction(task.labels[label], label)
    label = min(label, len(example.choices) - 1)
    return Prediction(example.choices[label].strip(), label)


def _random_span(context: str, length: int, generator: random.Random) -> Prediction:
    words = context.split()
    length = min(length, len(words))
    start = generator.randint(0, len(words) - length)
    return Prediction(" ".join(words[start : start + length]))


def _best_constant(task: Task, train: Sequence[Example], generator: random.Random) -> str:
    sample = list(train) if len(train) <= CONSTANT_ROWS else generator.sample(list(train), CONSTANT_ROWS)
    common = [text for text, _ in Counter(example.references[0] for example in train).most_common(10)]
    candidates = list(dict.fromkeys([*common, *(example.references[0] for example in sample)]))
    metric = task.metrics[0]

    def value(candidate: str) -> float:
        rows, from_sums = _statistics(metric, [Prediction(candidate)] * len(sample), sample)
        return float(from_sums(rows.sum(axis=0)))

    return max(candidates, key=value)

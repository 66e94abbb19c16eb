"""The paper's quality filter: logistic regression over hashed word features, curated sources against raw crawl.

A crawled document is kept iff numpy.random.pareto(alpha) > 1 - score, so that some documents of low score stay: of those
with score s the share (2 - s) ** -alpha. Source: Brown et al. 2020, appendix A.

Beyond the paper: a classifier for every language, since one alone would score Korean low wherever the curated sources
are English; and character pairs for scripts in which words are inflected by suffixes without a space (Korean) or not
separated at all. On 2,000 Korean film reviews, liked against disliked, pairs raised accuracy from 75.1% to 81.4%.

Also beyond the paper: cross-fitting. A crawl is often no larger than the sample, and a classifier scores low whatever
it was shown as a negative: it would keep 5% of 100 film reviews among 1,000 advertisements, and 61% of other reviews.
So every text belongs to one of two folds, each fold trains a classifier, and the other fold's scores it: 58% and 61%.

Sampling, folds and the draw are functions of each document's text and the seed, so nothing depends on parts or workers.
"""

import hashlib
import heapq
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from .clean import UNDETERMINED, UNSPACED
from .documents import (
    Ledger,
    PartWriter,
    Step,
    list_parts,
    make_document,
    read_documents,
    read_json,
    write_json,
    written_whole,
)


MODEL_FILE = "quality.npz"
SUMMARY_FILE = "summary.json"
# The start of a long document stands for all of it.
FEATURE_CHARACTERS = 100_000
# Text in memory for one class of one language, however long its documents.
SAMPLE_CHARACTERS = 100_000_000
# The best of 1, 10 and 100 on Korean reviews, with any of the features tried.
INVERSE_REGULARIZATION = 10.0
HISTOGRAM_BINS = 20
_BATCH_DOCUMENTS = 1_000
_BATCH_CHARACTERS = 4_000_000

_WORD = re.compile(r"\w+")
_PAIR = re.compile(f"(?=([\uac00-\ud7a3{UNSPACED}]{{2}}))")


@dataclass
class QualityConfig:
    """The quality filter of a recipe."""

    positives: list[str] | None = field(
        default=None, metadata={"help": "Sources that show what is good. Default: all curated ones."}
    )
    alpha: float = field(
        default=9.0, metadata={"help": "Shape of the Pareto draw: larger drops more of the low scores (paper: 9)."}
    )
    features: int = field(default=2**18, metadata={"help": "Hashed features."})
    max_documents: int = field(
        default=50_000, metadata={"help": "Documents to train on, of each class and language, at most."}
    )
    min_examples: int = field(
        default=200,
        metadata={"help": "A language with fewer documents of either class, both folds together, is not filtered."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sample and of the Pareto draws."})

    def __post_init__(self) -> None:
        if self.positives is not None and not self.positives:
            raise ValueError("`positives` is empty: name at least one source, or leave it out for all curated ones.")
        if not self.alpha > 0.0:
            raise ValueError(f"`alpha` must be above 0, got {self.alpha}.")
        if not 2**8 <= self.features <= 2**26:
            raise ValueError(f"`features` must be from {2**8} to {2**26}, got {self.features}.")
        if self.min_examples < 20:
            raise ValueError(
                f"`min_examples` must be at least 20 (half of them train a classifier), got {self.min_examples}."
            )
        if self.max_documents < self.min_examples:
            raise ValueError(
                f"`max_documents` ({self.max_documents}) is below `min_examples` ({self.min_examples}): "
                "no language would be filtered."
            )


def extract_features(text: str) -> list[str]:
    r"""Words (`\w+`, case folded), and pairs of neighbouring characters in Hangul and scripts without spaces."""
    text = text[:FEATURE_CHARACTERS]
    words = _WORD.findall(text.casefold())
    return words if text.isascii() else words + _PAIR.findall(text)


def _vectors(texts: Iterable[str], features: int) -> Any:
    """Counts of hashed features, each row scaled to length 1, as a sparse matrix (texts, features)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    # MurmurHash3 with a fixed seed: the same on every machine, unlike Python's own hash.
    vectorizer = HashingVectorizer(analyzer=extract_features, n_features=features, alternate_sign=False, norm="l2")
    return vectorizer.transform(texts)


@dataclass
class QualityModel:
    """Two classifiers by language: weights (features, 2) and biases (2,).

    Column 0 scores the texts of fold 0 and was trained on those of fold 1; column 1 the other way round.
    """

    features: int
    weights: dict[str, np.ndarray]
    bias: dict[str, np.ndarray]


def save_model(model: QualityModel, path: Path) -> None:
    """Write the weights as NumPy's .npz, without pickles; whole or not at all."""
    languages = sorted(model.weights)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            languages=np.array(languages, dtype="U16"),
            weights=np.array([model.weights[name] for name in languages], np.float32).reshape(-1, model.features, 2),
            bias=np.array([model.bias[name] for name in languages], np.float64).reshape(-1, 2),
        )


def load_model(path: str | Path) -> QualityModel:
    """Read what `TrainQuality` wrote: a `quality.npz` or the folder it is in.

    Raises:
        ValueError: No such file.
    """
    path = Path(path)
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"There is no quality classifier at {path}: train one by `hfgpt prepare` with `quality`.")
    with np.load(path, allow_pickle=False) as file:
        languages = file["languages"].tolist()
        weights = file["weights"]
        return QualityModel(
            features=weights.shape[1],
            weights={language: row.astype(np.float64) for language, row in zip(languages, weights)},
            bias=dict(zip(languages, file["bias"])),
        )


def scores(texts: list[str], model: QualityModel, language: str) -> np.ndarray:
    """How much texts are like the curated sources: probabilities, float64 of shape (texts,).

    Each is scored by the classifier that its fold did not train, so a text that was trained on scores like any other.

    Args:
        texts: Documents in one language.
        model: From `load_model`.
        language: Its code, as in `model.weights`.

    Raises:
        ValueError: The model has no classifier for the language.
    """
    if language not in model.weights:
        raise ValueError(
            f"The quality model has no classifier for {language!r}; it has {', '.join(sorted(model.weights)) or 'none'}."
        )
    if not texts:
        return np.zeros(0)
    folds = np.array([_fold(text) for text in texts])
    return _probabilities(_vectors(texts, model.features), folds, model.weights[language], model.bias[language])


def _probabilities(vectors: Any, folds: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Of each row of `vectors`, by the column of `weights` and `bias` that scores its fold."""
    from scipy.special import expit

    return expit((vectors @ weights + bias)[np.arange(len(folds)), folds])


def is_kept(text: str, score: float, alpha: float = 9.0, seed: int = 0) -> bool:
    """Whether a document stays: numpy.random.pareto(alpha) > 1 - score, drawn from the text and the seed alone.

    The share that stays is (2 - score) ** -alpha: all at score 1, 0.2% at score 0 for the paper's alpha of 9.
    Source: Brown et al. 2020, appendix A.
    """
    generator = np.random.Generator(np.random.PCG64(_text_key("quality draw", text, seed)))
    return bool(generator.pareto(alpha) > 1.0 - score)


def _text_key(purpose: str, text: str, seed: int) -> int:
    """A number of 128 bits."""
    value = f"{purpose}\0{seed}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(value, digest_size=16).digest())


def _fold(text: str) -> int:
    """0 or 1. Of what a sample holds of the text; without a seed, so that a model needs none to score."""
    return _text_key("quality fold", text[:FEATURE_CHARACTERS], 0) & 1


class _Sample:
    """Distinct texts of the smallest keys: as many as both limits let in."""

    def __init__(self, max_documents: int, max_characters: int):
        self.max_documents, self.max_characters = max_documents, max_characters
        self._heap: list[tuple[int, str, str]] = []  # largest key first
        self._keys: set[int] = set()
        self._characters = 0
        # Nothing from here on fits; without it a short text could take the place of a long one before it.
        self._bound = 2**128

    def add(self, key: int, text: str, source: str) -> None:
        if key >= self._bound or key in self._keys:
            return
        heapq.heappush(self._heap, (-key, text, source))
        self._keys.add(key)
        self._characters += len(text)
        while len(self._heap) > self.max_documents or self._characters > self.max_characters:
            largest, dropped, _ = heapq.heappop(self._heap)
            self._bound = -largest
            self._keys.remove(-largest)
            self._characters -= len(dropped)

    def items(self) -> list[tuple[int, str, str]]:
        """Key, text and source, smallest key first."""
        return [(-key, text, source) for key, text, source in sorted(self._heap, reverse=True)]


class SampleQuality(Step):
    """Writes what part `rank` has to train on: the texts of the smallest hashes, by class and language.

    Args:
        config: Of the filter.
        positives: The sources that show what is good.
        crawl_sources: The sources to filter.
        read_from: The folder of the parts.
        folder: Where the samples go, as `positives/` and `negatives/`, under the names of the parts.
        ledger: Of the stage.
        counted: The merged ledger, as JSON, of the stage that detected languages. Where given, all parts together
            write about twice what is trained on, not each as much: what is trained on is the same in both cases, so
            long as the stages between drop less than half.

    Raises:
        ValueError: A source is in both classes.
    """

    name = "sample for the quality filter"

    def __init__(
        self,
        config: QualityConfig,
        positives: Collection[str],
        crawl_sources: Collection[str],
        read_from: Path,
        folder: Path,
        ledger: Ledger,
        counted: Path | None = None,
    ):
        super().__init__(ledger)
        both = sorted(set(positives) & set(crawl_sources))
        if both:
            raise ValueError(
                f"`positives` of `quality` names {', '.join(both)}, with `curated: false`: it would be an example of "
                "both classes. Name curated sources alone."
            )
        self.config, self.read_from, self.folder, self.counted = config, read_from, folder, counted
        self.classes = {**dict.fromkeys(positives, "positives"), **dict.fromkeys(crawl_sources, "negatives")}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Consume the documents."""
        shares = self._shares()
        samples: dict[tuple[str, str], _Sample] = {}
        for document in data:
            kind = self.classes.get(document.metadata["source"], ""), document.metadata["language"] or UNDETERMINED
            if not kind[0]:
                continue
            text = document.text[:FEATURE_CHARACTERS]
            key = _text_key("quality sample", text, self.config.seed)
            if key < shares.get(kind, 1.0) * 2**128:
                sample = samples.setdefault(kind, _Sample(self.config.max_documents, SAMPLE_CHARACTERS))
                sample.add(key, text, document.metadata["source"])
        part = list_parts(self.read_from)[rank].name
        for name in ("positives", "negatives"):
            with PartWriter(self.folder / name / part) as writer:
                for language in sorted(language for kind, language in samples if kind == name):
                    for key, text, source in samples[name, language].items():
                        writer.write(make_document(text, f"{key:032x}", source, language))

    def _shares(self) -> dict[tuple[str, str], float]:
        """The share of all hashes that can be needed, by class and language."""
        counts = read_json(self.counted)["counts"] if self.counted is not None else {}
        totals: dict[tuple[str, str], float] = {}
        for source, numbers in counts.items():
            for name, number in numbers.items():
                if source in self.classes and name.startswith("language_"):
                    kind = self.classes[source], name.removeprefix("language_")
                    totals[kind] = totals.get(kind, 0) + number
        return {kind: min(1.0, 2 * self.config.max_documents / total) for kind, total in totals.items()}


class TrainQuality(Step):
    """Trains a classifier for each language and fold on all samples, measures it on the other fold. One task.

    Writes `quality.npz` (see `load_model`) and `summary.json`: by language the examples of both classes, and the
    accuracy, the area under the ROC curve, histograms of the scores and the share expected to stay. All examples are
    measured, each held out: scored by the classifier that has not seen it, as the filter scores them. Classes weigh the
    same, however many examples each has.

    Args:
        config: Of the filter.
        samples: The folder `SampleQuality` wrote.
        folder: Where the two files go.
        ledger: Of the stage.
    """

    name = "train the quality filter"

    def __init__(self, config: QualityConfig, samples: Path, folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.config, self.samples, self.folder = config, samples, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Train and write."""
        assert world_size == 1
        merged: dict[str, dict[str, _Sample]] = {}
        for name in ("positives", "negatives"):
            for part in list_parts(self.samples / name):
                for document in read_documents(part):
                    self.ledger.tick()
                    classes = merged.setdefault(document.metadata["language"], {})
                    sample = classes.setdefault(name, _Sample(self.config.max_documents, SAMPLE_CHARACTERS))
                    sample.add(int(document.id, 16), document.text, document.metadata["source"])
        model = QualityModel(self.config.features, {}, {})
        summary = {}
        for language in sorted(merged):
            # Taken out of `merged`, so that the texts of one language after another are freed.
            classes = merged.pop(language)
            examples = [classes[name].items() if name in classes else [] for name in ("positives", "negatives")]
            summary[language] = _train_language(language, examples, self.config, model)
        save_model(model, self.folder / MODEL_FILE)
        write_json(self.folder / SUMMARY_FILE, summary)


def _train_language(
    language: str, examples: list[list[tuple[int, str, str]]], config: QualityConfig, model: QualityModel
) -> dict[str, Any]:
    """Add the language's classifiers to the model; returns its summary. `examples`: positives, negatives."""
    counts = {"positives": len(examples[0]), "negatives": len(examples[1])}
    few = [f"{count} {name}" for name, count in counts.items() if count < config.min_examples]
    if few:
        return {**counts, "filtered": False, "why": f"{', '.join(few)}: fewer than min_examples {config.min_examples}"}

    texts: list[list[str]] = [[], []]
    labels: list[list[bool]] = [[], []]
    for is_positive, rows in zip((True, False), examples):
        for _, text, _ in rows:
            fold = _fold(text)
            texts[fold].append(text)
            labels[fold].append(is_positive)
    if any(len(set(of_fold)) < 2 for of_fold in labels):
        # One chance in half a million for a class of the fewest examples allowed.
        return {**counts, "filtered": False, "why": "all examples of a class are in one fold: more are needed"}

    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    vectors = [_vectors(of_fold, config.features) for of_fold in texts]
    weights, bias = np.zeros((config.features, 2)), np.zeros(2)
    classifier = LogisticRegression(C=INVERSE_REGULARIZATION, class_weight="balanced", max_iter=300)
    for fold in (0, 1):
        # Sums over one thread: the same weights whatever the number of cores.
        with threadpool_limits(1):
            classifier.fit(vectors[1 - fold], labels[1 - fold])
        # Rounded as the file holds them.
        weights[:, fold] = classifier.coef_[0].astype(np.float32)
        bias[fold] = classifier.intercept_[0]
    model.weights[language], model.bias[language] = weights, bias

    held_out = np.concatenate(
        [_probabilities(vectors[fold], np.full(len(texts[fold]), fold), weights, bias) for fold in (0, 1)]
    )
    truth = np.array(labels[0] + labels[1])
    by_class = {"positives": held_out[truth], "negatives": held_out[~truth]}
    right = np.mean(by_class["positives"] > 0.5), np.mean(by_class["negatives"] <= 0.5)
    return {
        **counts,
        "filtered": True,
        # The mean of both classes, so that neither counts more for having more examples.
        "held_out_accuracy": float(np.mean(right)),
        "held_out_auc": float(roc_auc_score(truth, held_out)),
        "scores": {
            name: np.histogram(values, HISTOGRAM_BINS, (0.0, 1.0))[0].tolist() for name, values in by_class.items()
        },
        "expected_kept": {name: float(np.mean((2.0 - values) ** -config.alpha)) for name, values in by_class.items()},
    }


def quality_report(summary: dict[str, dict[str, Any]], counts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What `TrainQuality` measured, with the documents `kept` and `dropped` in each language.

    Args:
        summary: The content of `summary.json`.
        counts: The counts of the merged ledger of `QualityFilter`.
    """
    report = {language: {**numbers, "kept": 0, "dropped": 0} for language, numbers in summary.items()}
    for numbers in counts.values():
        for language in report:
            report[language]["kept"] += int(numbers.get(f"quality_kept_{language}", 0))
            report[language]["kept"] += int(numbers.get(f"quality_unscored_{language}", 0))
            report[language]["dropped"] += int(numbers.get(f"quality_dropped_{language}", 0))
    return report


class QualityFilter(Step):
    """Drops documents of crawls by the paper's rule; others, and languages without a classifier, pass.

    Counts, for crawls, `quality_kept_ko`, `quality_dropped_ko` and `quality_unscored_ko` (no classifier), and so on.

    Args:
        config: Of the filter.
        crawl_sources: The sources to filter.
        folder: Where `TrainQuality` wrote.
        ledger: Of the stage.
    """

    name = "quality filter"

    def __init__(self, config: QualityConfig, crawl_sources: Collection[str], folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.config, self.crawl_sources, self.folder = config, frozenset(crawl_sources), folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents that stay, in order."""
        model = load_model(self.folder)
        for batch in _batches(data):
            yield from self._filter(batch, model)

    def _filter(self, batch: list[Document], model: QualityModel) -> Iterator[Document]:
        by_language: dict[str, list[int]] = {}
        for index, document in enumerate(batch):
            if document.metadata["source"] in self.crawl_sources:
                by_language.setdefault(document.metadata["language"] or UNDETERMINED, []).append(index)
        kept = np.ones(len(batch), dtype=bool)
        for language, indices in by_language.items():
            if language not in model.weights:
                for index in indices:
                    self.ledger.count(batch[index].metadata["source"], **{f"quality_unscored_{language}": 1})
                continue
            for index, score in zip(indices, scores([batch[i].text for i in indices], model, language)):
                document = batch[index]
                kept[index] = is_kept(document.text, score, self.config.alpha, self.config.seed)
                outcome = "kept" if kept[index] else "dropped"
                self.ledger.count(document.metadata["source"], **{f"quality_{outcome}_{language}": 1})
                if not kept[index]:
                    self.ledger.drop(document, "quality")
        yield from (document for document, keep in zip(batch, kept) if keep)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

"""Decontamination as in appendix C of the GPT-3 paper: text of benchmarks is cut out of the training documents.

Where 13 words in a row of a document are in a benchmark, they and 200 characters on each side are cut; pieces under 200
characters are dropped, a document cut into more than 10 pieces is dropped, and 13 words found in more than 10 documents
are left alone as a common phrase. Matches are exact: hashes only say where to look. What the paper leaves open:

- A word is what is left of a run without white space, lower-cased, without its characters of Unicode's categories P and S
  (punctuation and symbols: `don't` is `dont`, `$5` is `5`). Where nothing is left, there is no word. Nothing else is
  normalised: accents, combining marks and zero-width characters belong to the word.
- The gram that is cut goes from the first character of its first word's run to the last of its last word's, with their
  punctuation; 200 characters are Unicode characters of the text as it is, so that a window may end inside a word. Windows
  that overlap or touch are one.
- Pieces are counted as they are split, before the short ones are dropped; nothing at all before a window at the very
  beginning (or after one at the end) is no piece. A piece of white space alone is dropped as a short one is.
- A document none of whose pieces is long enough is dropped, under a reason of its own.
- Documents are counted per gram over the whole corpus, before anything is cut, each once. Copies count each.
- Every text of an example is checked by itself: no gram runs from the question into the answer. Texts under 13 words
  cannot match.
- A window that ends inside a word may leave the beginning or end of a word, and with it, in theory, a gram of a benchmark
  that was not there before: pieces are not cut again, but what is left in them is what the report tells.

The steps, in order: `CollectGrams` (one task), `CountGrams` (a task a part), `MergeCounts` (one task), `Decontaminate` (a
task a part), and `contamination_report`. They share one folder:

    grams/                the benchmarks' words and grams, as arrays that tasks of one machine share by memory mapping
    hits/PART.npy         rows (number of the document in the part, gram)
    counts.npy            rows (gram, documents it is in)
    left/PART.npy         grams that are still in the part
    dropped/PART.npy      numbers of the documents dropped
    examples/NAME.jsonl   what became of every example of a benchmark
"""

import hashlib
import json
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from .documents import EXAMPLE_CHARACTERS, Ledger, Step, list_parts, write_json, written_whole
from .readers import MARKUP, RowErrors, SourceConfig, WantedRows, numbered_rows


# Ids of runs that are no word, and of words that are in no benchmark.
NO_WORD, UNKNOWN = -2, -1
# A document is split into words so many characters at a time: the words of a whole book would take ten times its memory.
CHUNK_CHARACTERS = 1_000_000
# Runs whose id is remembered; longer ones are seldom seen twice.
REMEMBERED_RUNS = 500_000
REMEMBERED_CHARACTERS = 40
CUT = "contaminated: cut out"
SPACE = re.compile(r"\s")
BENCHMARK_FORMATS = ("text", "jsonl", "csv", "parquet")
NO_MARKUP = f"Benchmarks are rows without markup: give {', '.join(BENCHMARK_FORMATS)}, or a `dataset`."
NO_HITS = np.zeros((0, 2), np.int64)


@dataclass
class BenchmarkConfig(SourceConfig):
    """A benchmark whose text must not be in the corpus: a source, and the fields of it that are looked at."""

    fields: list[str] | None = field(
        default=None,
        metadata={
            "help": "Fields whose texts are looked for, each by itself; in lists and mappings every text. "
            "Default: `text_field`."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fields is None:
            self.fields = [self.text_field]
        if not self.fields:
            raise ValueError(f"`fields` of benchmark {self.name!r} is empty: name one, or leave it out.")
        if self.format not in (None, *BENCHMARK_FORMATS):
            raise ValueError(f"Benchmark {self.name!r} has `format: {self.format}`. {NO_MARKUP}")
        if self.extract not in ("auto", "none"):
            raise ValueError(f"Benchmark {self.name!r} has `extract: {self.extract}`. {NO_MARKUP}")

    @property
    def file_name(self) -> str:
        """`name` as a file may be called."""
        return re.sub(r"[^\w.-]+", "_", self.name)


@dataclass
class DecontaminateConfig:
    """What to look for and what to cut. Source of the defaults: GPT-3, appendix C."""

    benchmarks: list[BenchmarkConfig] = field(metadata={"help": "Texts that must not be in the corpus."})
    ngram_words: int = field(default=13, metadata={"help": "So many words in a row that are in a benchmark are cut."})
    window_characters: int = field(default=200, metadata={"help": "Characters cut on each side of them."})
    min_piece_characters: int = field(default=200, metadata={"help": "Shorter pieces of a cut document are dropped."})
    max_pieces: int = field(default=10, metadata={"help": "A document cut into more pieces is dropped."})
    max_documents: int = field(
        default=10, metadata={"help": "Words in a row that are in more documents are a common phrase, and stay."}
    )
    max_bad_rows: int | None = field(
        default=0, metadata={"help": "More malformed rows of benchmarks than this fail the run; null: never."}
    )

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ValueError("`benchmarks` is empty: name at least one, or leave `decontaminate` out.")
        names = [benchmark.file_name for benchmark in self.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError(f"Two `benchmarks` have the same `name` (as a file name): {', '.join(sorted(names))}.")
        for name, least in (
            ("ngram_words", 1),
            ("window_characters", 0),
            ("min_piece_characters", 1),
            ("max_pieces", 1),
            ("max_documents", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")


class _Punctuation(dict[int, int | None]):
    """For `str.translate`: punctuation and symbols go. Filled as characters are met, not for all of Unicode."""

    def __missing__(self, code: int) -> int | None:
        self[code] = None if unicodedata.category(chr(code))[0] in "PS" else code
        return self[code]


_PUNCTUATION = _Punctuation()


@lru_cache(maxsize=2**16)
def _word_of(run: str) -> str:
    """The word in a run of characters without white space, or "".

    Lower-casing looks at neighbours (final sigma), but never across white space: so run by run gives what the whole
    text lower-cased would.
    """
    return run.lower().translate(_PUNCTUATION)


def split_words(text: str) -> list[str]:
    """The words of a text: lower-cased, without punctuation, split on white space."""
    return [word for run in text.split() if (word := _word_of(run))]


# --- Benchmarks -> grams


def read_examples(benchmark: BenchmarkConfig, errors: RowErrors) -> Iterator[list[str]]:
    """The texts of each example. As in `read_rows`, a row without any text is passed over and has no number.

    Raises:
        ValueError: The benchmark cannot be read, lacks a field, or has too many malformed rows.
    """
    fields = benchmark.fields or []
    wanted = WantedRows(benchmark)
    looked_at = [*fields, *wanted.values]
    if benchmark.part != "all":
        looked_at.append(benchmark.group_by or benchmark.text_field)
    taken = 0
    try:
        for file, line, row in numbered_rows(benchmark, errors):
            if MARKUP in row:
                raise ValueError(f"{file} holds pages or articles. {NO_MARKUP}")
            for key in looked_at:
                if key not in row:
                    raise ValueError(
                        f"no field `{key}` in {file}:{line}; the fields are {', '.join(map(str, row)) or '(none)'}"
                    )
            if wanted.why_not(row):
                continue
            texts = [text for name in fields for text in _texts_in(row[name]) if text.strip()]
            if not texts:
                continue
            if any(map(_has_surrogate, texts)):
                errors.add(file, line, "not valid UTF-8")
                continue
            # As `clean` writes the corpus.
            yield [unicodedata.normalize("NFC", text) for text in texts]
            taken += 1
            if benchmark.max_rows is not None and taken >= benchmark.max_rows:
                return
    except ValueError as error:
        raise ValueError(f"Benchmark {benchmark.name!r} (`decontaminate.benchmarks`): {error}") from None
    if not taken:
        raise ValueError(
            f"Benchmark {benchmark.name!r} (`decontaminate.benchmarks`) has no example with text in "
            f"{', '.join(fields)}: check `fields`, `where` and `part`."
        )


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in a value, at any depth: choices, answers and their aliases, a sentence in two languages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts_in(part)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _hash_grams(words: Any, ngram_words: int, salt: int) -> Any:
    """A 64-bit hash of every `ngram_words` neighbours in an array of word ids: sum of id times a random factor."""
    if len(words) < ngram_words:
        return np.zeros(0, np.uint64)
    # One call: where documents are small, the number of calls is what takes the time.
    return np.correlate(words.astype(np.uint64), _factors(ngram_words, salt), "valid")


@lru_cache
def _factors(ngram_words: int, salt: int) -> Any:
    digests = (hashlib.blake2b(f"{salt} {offset}".encode(), digest_size=8).digest() for offset in range(ngram_words))
    return np.array([int.from_bytes(digest, "big") | 1 for digest in digests], np.uint64)


class CollectGrams(Step):
    """Reads all benchmarks and writes their grams, and the examples each is in. One task."""

    name = "collect benchmark grams"

    def __init__(self, config: DecontaminateConfig, folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.config, self.folder = config, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write `grams/`.

        Raises:
            ValueError: A benchmark cannot be read, lacks a field, or has no text.
        """
        ngram_words = self.config.ngram_words
        errors = RowErrors(self.config.max_bad_rows)
        vocabulary: dict[str, int] = {}
        # All texts of at least `ngram_words` words, one after the other, their lengths, and whose they are.
        words, lengths, owners = array("i"), array("q"), array("q")
        benchmarks: list[dict[str, Any]] = []
        example = 0
        for benchmark in self.config.benchmarks:
            first = example
            for texts in read_examples(benchmark, errors):
                for text in texts:
                    text_words = split_words(text)
                    if len(text_words) >= ngram_words:
                        words.extend(vocabulary.setdefault(word, len(vocabulary)) for word in text_words)
                        lengths.append(len(text_words))
                        owners.append(example)
                example += 1
                self.ledger.tick()
            benchmarks.append({"name": benchmark.name, "file": benchmark.file_name, "examples": example - first})

        text = np.array(words, np.int32)
        text_of_word = np.repeat(np.arange(len(lengths)), lengths)
        ends = np.cumsum(lengths)
        # Grams do not run from one text into the next.
        starts = np.flatnonzero(np.arange(len(text)) + ngram_words <= ends[text_of_word])
        salt, hashes, places, grams = _number_grams(text, starts, ngram_words)
        pairs = np.unique(grams * np.int64(example) + np.array(owners, np.int64)[text_of_word[starts]])
        offsets = np.searchsorted(pairs, np.arange(len(hashes) + 1) * np.int64(example))

        folder = self.folder / "grams"
        _save(folder / "text.npy", text)
        _save(folder / "hashes.npy", hashes)
        _save(folder / "places.npy", places)
        _save(folder / "offsets.npy", offsets)
        _save(folder / "examples.npy", pairs % example)
        _write(folder / "words.txt", lambda file: file.write("\n".join(vocabulary).encode()))
        write_json(folder / "grams.json", {"ngram_words": ngram_words, "salt": salt, "benchmarks": benchmarks})


def _number_grams(text: Any, starts: Any, ngram_words: int) -> tuple[int, Any, Any, Any]:
    """Number the distinct grams that begin at `starts`, in the order of their hashes.

    Returns:
        The salt under which no two grams share a hash; by gram its hash and a place in `text` where it begins; by
        start its gram.
    """
    salt = 0
    while True:
        hashes, first, grams = np.unique(
            _hash_grams(text, ngram_words, salt)[starts], return_index=True, return_inverse=True
        )
        places = starts[first]
        if all((text[places[grams] + offset] == text[starts + offset]).all() for offset in range(ngram_words)):
            return salt, hashes, places, grams
        salt += 1


def _write(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file so that it is whole or not there."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        write(file)


def _save(path: Path, values: Any) -> None:
    _write(path, lambda file: np.save(file, values, allow_pickle=False))


# --- Grams in documents


class _RunIds(dict[str, int]):
    """Ids of runs without white space, remembered: most runs of a corpus are the same few thousand."""

    def __init__(self, vocabulary: dict[str, int]):
        super().__init__()
        self.vocabulary = vocabulary

    def __missing__(self, run: str) -> int:
        word = run.lower().translate(_PUNCTUATION)
        number = self.vocabulary.get(word, UNKNOWN) if word else NO_WORD
        if len(run) <= REMEMBERED_CHARACTERS:
            if len(self) >= REMEMBERED_RUNS:
                self.clear()
            self[run] = number
        return number


class GramIndex:
    """Finds the grams of the benchmarks in texts."""

    def __init__(self, folder: Path):
        about = json.loads((folder / "grams" / "grams.json").read_text(encoding="utf-8"))
        self.ngram_words: int = about["ngram_words"]
        self.salt: int = about["salt"]
        self.text, self.hashes, self.places = (
            np.asarray(np.load(folder / "grams" / f"{name}.npy", mmap_mode="r"))
            for name in ("text", "hashes", "places")
        )
        vocabulary = (folder / "grams" / "words.txt").read_text(encoding="utf-8").split("\n")
        self.ids = _RunIds({word: number for number, word in enumerate(vocabulary)})
        # By the first bits of a hash: is there a gram at all? Spares most of the searches.
        bits = min(max(16 * len(self.hashes), 2).bit_length(), 28)
        self._shift = np.uint64(64 - bits)
        self._possible = np.zeros(2**bits, bool)
        self._possible[self.hashes >> self._shift] = True

    def find(self, text: str) -> tuple[Any, Any]:
        """All grams in a text.

        Returns:
            The number of the word each begins at, ascending, and which gram it is. `int64` arrays.
        """
        words = self._word_ids(text)
        if not len(self.hashes) or not self._enough_known(words):
            return NO_HITS[:, 0], NO_HITS[:, 1]
        hashes = _hash_grams(words, self.ngram_words, self.salt)
        starts = np.flatnonzero(self._possible[hashes >> self._shift])
        hashes = hashes[starts]
        grams = np.searchsorted(self.hashes[:-1], hashes)
        # The same hash first, which is cheap; then the same words, which is what counts.
        same = np.flatnonzero(self.hashes[grams] == hashes)
        starts, grams = starts[same], grams[same]
        if len(starts):
            span = np.arange(self.ngram_words)
            same = (self.text[self.places[grams][:, None] + span] == words[starts[:, None] + span]).all(axis=1)
            starts, grams = starts[same], grams[same]
        return starts, grams

    def _enough_known(self, words: Any) -> bool:
        """Whether `ngram_words` words in a row are known: most documents end here where the benchmarks are small."""
        unknown = np.flatnonzero(words == UNKNOWN)
        if not len(unknown):
            return len(words) >= self.ngram_words
        between = max(unknown[0], len(words) - unknown[-1] - 1)
        if len(unknown) > 1:
            between = max(between, (unknown[1:] - unknown[:-1]).max() - 1)
        return bool(between >= self.ngram_words)

    def _word_ids(self, text: str) -> Any:
        ids = [
            np.fromiter(map(self.ids.__getitem__, runs), np.int32, len(runs)) for runs in map(str.split, _chunks(text))
        ]
        words = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        return words[words != NO_WORD]

    def character_spans(self, text: str, starts: Any) -> list[tuple[int, int]]:
        """Where the grams that begin at these words stand in the text, in characters."""
        first = set(starts.tolist())
        last = set((starts + self.ngram_words - 1).tolist())
        begins, ends = [], []
        number = 0
        for run in re.finditer(r"\S+", text):
            if self.ids[run.group()] != NO_WORD:
                if number in first:
                    begins.append(run.start())
                if number in last:
                    ends.append(run.end())
                number += 1
        return list(zip(begins, ends))


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        space = SPACE.search(text, start + CHUNK_CHARACTERS)
        end = space.start() if space else len(text)
        yield text[start:end]
        start = end


class CountGrams(Step):
    """Notes which benchmark grams are in which documents of part number `rank`. Documents pass unchanged."""

    name = "count benchmark grams"

    def __init__(self, read_from: Path, folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.read_from, self.folder = read_from, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents, then write `hits/PART.npy`."""
        index = GramIndex(self.folder)
        hits = [NO_HITS]
        for number, document in enumerate(data):
            grams = np.unique(index.find(document.text)[1])
            if len(grams):
                hits.append(np.stack([np.full(len(grams), number), grams], axis=1))
            yield document
        _save(_part_file(self.folder, "hits", list_parts(self.read_from)[rank]), np.concatenate(hits))


def _part_file(folder: Path, kind: str, part: Path) -> Path:
    return folder / kind / f"{part.stem}.npy"


class MergeCounts(Step):
    """Adds up in how many documents of the corpus each benchmark gram is. One task."""

    name = "merge gram counts"

    def __init__(self, read_from: Path, folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.read_from, self.folder = read_from, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write `counts.npy`."""
        counts = np.zeros(len(np.load(self.folder / "grams" / "hashes.npy", mmap_mode="r")), np.int64)
        for part in list_parts(self.read_from):
            grams, documents = np.unique(np.load(_part_file(self.folder, "hits", part))[:, 1], return_counts=True)
            counts[grams] += documents
        found = np.flatnonzero(counts)
        _save(self.folder / "counts.npy", np.stack([found, counts[found]], axis=1))


def _load_hits(folder: Path, part: Path, max_documents: int) -> tuple[Any, Any]:
    """The rows (document, gram) of a part, and which of them are common phrases."""
    counts = np.load(folder / "counts.npy")
    hits = np.load(_part_file(folder, "hits", part))
    return hits, np.isin(hits[:, 1], counts[counts[:, 1] > max_documents, 0])


# --- Cutting


def cut_windows(text: str, spans: Iterable[tuple[int, int]], window_characters: int) -> list[str]:
    """What is left of a text, in order, when the spans and so many characters on each side are cut.

    Args:
        text: The text.
        spans: Begin and end of what is cut, in characters, ascending.
        window_characters: Characters cut on each side of a span.
    """
    pieces = []
    position = 0
    for begin, end in spans:
        if begin - window_characters > position:
            pieces.append(text[position : begin - window_characters])
        position = max(position, end + window_characters)
    if position < len(text):
        pieces.append(text[position:])
    return pieces


class Decontaminate(Step):
    """Cuts the text of benchmarks out of the documents of part number `rank`.

    A document without it passes unchanged. What is left of the others comes as one document a piece, `ID#0`, `ID#1`, ...
    """

    name = "decontaminate"

    def __init__(self, config: DecontaminateConfig, read_from: Path, folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.config, self.read_from, self.folder = config, read_from, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield what is left, then write `left/PART.npy` and `dropped/PART.npy`.

        Raises:
            ValueError: The documents are not those that `CountGrams` saw.
        """
        part = list_parts(self.read_from)[rank]
        hits, common = _load_hits(self.folder, part, self.config.max_documents)
        has_gram_to_cut = np.isin(hits[:, 0], hits[~common, 0])
        to_cut = _group(hits[has_gram_to_cut])
        cuttable = set(hits[~common, 1].tolist())
        left = [hits[~has_gram_to_cut, 1]]
        dropped = []
        index: GramIndex | None = None
        for number, document in enumerate(data):
            expected = to_cut.pop(number, None)
            if expected is None:
                yield document
                continue
            index = index or GramIndex(self.folder)
            starts, grams = index.find(document.text)
            if not np.array_equal(np.unique(grams), expected):
                raise ValueError(f"Document {document.id!r} of {part} has changed since its grams were counted.")
            cut = np.array([gram in cuttable for gram in grams.tolist()], bool)
            spans = index.character_spans(document.text, starts[cut])
            pieces = self._cut(document, spans)
            if not pieces:
                dropped.append(number)
            for piece in pieces:
                left.append(index.find(piece.text)[1])
                yield piece
        if to_cut:
            raise ValueError(f"{part} has fewer documents than when its grams were counted.")
        _save(_part_file(self.folder, "left", part), np.unique(np.concatenate(left)))
        _save(_part_file(self.folder, "dropped", part), np.array(dropped, np.int64))

    def _cut(self, document: Document, spans: list[tuple[int, int]]) -> list[Document]:
        """The documents that a document becomes."""
        config = self.config
        source = document.metadata["source"]
        pieces = cut_windows(document.text, spans, config.window_characters)
        kept = [piece for piece in pieces if len(piece) >= config.min_piece_characters and not piece.isspace()]
        if len(pieces) > config.max_pieces:
            self.ledger.drop(document, f"contaminated: more than {config.max_pieces} pieces")
            return []
        if not kept:
            self.ledger.drop(document, "contaminated: pieces too short")
            return []
        kept_bytes = sum(len(piece.encode("utf-8")) for piece in kept)
        self.ledger.count(
            source,
            documents_cut=1,
            pieces=len(kept),
            bytes_cut=len(document.text.encode("utf-8")) - kept_bytes,
        )
        self.ledger.example(source, CUT, document.text[spans[0][0] :][:EXAMPLE_CHARACTERS], document.id)
        return [
            Document(text=piece, id=f"{document.id}#{number}", metadata=dict(document.metadata))
            for number, piece in enumerate(kept)
        ]


def _group(hits: Any) -> dict[int, Any]:
    """The grams of each document. Rows are (document, gram), ascending."""
    documents, first = np.unique(hits[:, 0], return_index=True)
    return dict(zip(documents.tolist(), np.split(hits[:, 1], first[1:])))


# --- Report


def contamination_report(config: DecontaminateConfig, read_from: Path, folder: Path) -> dict[str, Any]:
    """What of the benchmarks was in the corpus, and what still is; writes `examples/NAME.jsonl` for each of them.

    A line of those files is an example, in the order of reading: `index`, `dirty` (a gram of it was in the corpus,
    before cutting: the paper's word), `left_in_corpus` (one still is, as a common phrase), `grams` (0: too short to be
    checked), `grams_found`, and `documents` (those cut or dropped because of it).

    Args:
        config: As given to the steps.
        read_from: Folder of the parts that were cut.
        folder: Folder of the steps.

    Returns:
        `grams`, `grams_found` and `grams_ignored` (common phrases) over all benchmarks, and by benchmark, under
        `benchmarks`: `examples`, `too_short`, `dirty`, `left_in_corpus`, `grams`, `grams_found`, and `documents_cut`
        and `documents_dropped` because of it. What two benchmarks share counts for both.
    """
    benchmarks = json.loads((folder / "grams" / "grams.json").read_text(encoding="utf-8"))["benchmarks"]
    offsets, owners = (np.load(folder / "grams" / f"{name}.npy") for name in ("offsets", "examples"))
    bounds = np.cumsum([0] + [benchmark["examples"] for benchmark in benchmarks])
    counts = np.load(folder / "counts.npy")
    found = np.zeros(len(offsets) - 1, bool)
    found[counts[:, 0]] = True
    left = np.zeros(len(found), bool)
    documents = np.zeros(bounds[-1], np.int64)
    cut_or_dropped = np.zeros((2, len(benchmarks)), np.int64)
    for part in list_parts(read_from):
        left[np.load(_part_file(folder, "left", part))] = True
        hits, common = _load_hits(folder, part, config.max_documents)
        # No more than `max_documents` rows a gram: what one gram of many examples can make of this has a limit.
        met = _examples_met(hits[~common], offsets, owners)
        documents += np.bincount(met[:, 1], minlength=len(documents))
        met[:, 1] = np.searchsorted(bounds, met[:, 1], side="right") - 1
        met = np.unique(met, axis=0)
        dropped = np.isin(met[:, 0], np.load(_part_file(folder, "dropped", part)))
        for row, chosen in enumerate((~dropped, dropped)):
            cut_or_dropped[row] += np.bincount(met[chosen, 1], minlength=len(benchmarks))

    gram_of_pair = np.repeat(np.arange(len(found)), np.diff(offsets))
    grams = np.bincount(owners, minlength=len(documents))
    grams_found = np.bincount(owners[found[gram_of_pair]], minlength=len(documents))
    grams_left = np.bincount(owners[left[gram_of_pair]], minlength=len(documents))
    report: dict[str, Any] = {
        "grams": len(found),
        "grams_found": int(found.sum()),
        "grams_ignored": int((counts[:, 1] > config.max_documents).sum()),
        "benchmarks": {},
    }
    for number, benchmark in enumerate(benchmarks):
        its = slice(bounds[number], bounds[number + 1])
        of_it = np.unique(gram_of_pair[(owners >= its.start) & (owners < its.stop)])
        report["benchmarks"][benchmark["name"]] = {
            "examples": benchmark["examples"],
            "too_short": int((grams[its] == 0).sum()),
            "dirty": int((grams_found[its] > 0).sum()),
            "left_in_corpus": int((grams_left[its] > 0).sum()),
            "grams": len(of_it),
            "grams_found": int(found[of_it].sum()),
            "documents_cut": int(cut_or_dropped[0, number]),
            "documents_dropped": int(cut_or_dropped[1, number]),
        }
        columns = [values[its].tolist() for values in (grams, grams_found, grams_left, documents)]
        _write_examples(folder / "examples" / f"{benchmark['file']}.jsonl", *columns)
    return report


def _examples_met(hits: Any, offsets: Any, owners: Any) -> Any:
    """Rows (document, example), each once, from rows (document, gram)."""
    many = offsets[hits[:, 1] + 1] - offsets[hits[:, 1]]
    # The places of the gram's examples: offset, offset + 1, ..., for every row.
    before = np.repeat(np.cumsum(many) - many, many)
    places = np.repeat(offsets[hits[:, 1]], many) + np.arange(many.sum()) - before
    return np.unique(np.stack([np.repeat(hits[:, 0], many), owners[places]], axis=1), axis=0)


def _write_examples(path: Path, grams: list[int], found: list[int], left: list[int], documents: list[int]) -> None:
    lines = (
        json.dumps(
            {
                "index": index,
                "dirty": found[index] > 0,
                "left_in_corpus": left[index] > 0,
                "grams": grams[index],
                "grams_found": found[index],
                "documents": documents[index],
            }
        )
        for index in range(len(grams))
    )
    _write(path, lambda file: file.writelines(f"{line}\n".encode() for line in lines))

"""Near-duplicates by datatrove's MinHash, extended so that nothing is removed unverified and curated text is kept.

Four steps on the parts of a corpus, numbered in order of priority (curated sources first):

    [ReadPart, Signatures]              a task a part; MinHash signatures of word 5-grams, and a sketch a document
    [Buckets]                           `buckets` tasks or a multiple; pairs of documents with equal signatures
    [Clusters]                          one task; verified duplicates, and what is kept in their place
    [ReadPart, DropDuplicates, WritePart]

Two documents that share a fraction s of their distinct 5-grams (Jaccard: of all that either has) are a candidate pair
with probability 1 - (1 - s^hashes_per_bucket)^buckets. Candidates are then compared by all their hashes, so that what
s alone decides below is only which pairs are looked at:

| s | 24 buckets x 4 hashes (ours) | 14 x 8 (datatrove's default) | 10 x 1 (the paper's, as Spark's MinHashLSH) |
|-|-|-|-|
| 0.95 | 1.000 | 1.000 | 1.000 |
| 0.9 | 1.000 | 1.000 | 1.000 |
| 0.8 | 1.000 | 0.924 | 1.000 |
| 0.667 | 0.995 | 0.427 | 1.000 |
| 0.5 | 0.788 | 0.053 | 0.999 |
| 0.3 | 0.177 | 0.001 | 0.972 |
| 0.1 | 0.002 | 0.000 | 0.651 |

0.8 is one reading of "80% of their 5-grams are shared"; 0.667 is the other, 80% of each one's (0.8 / (2 - 0.8)). The
paper's ten hashes, any of which makes a candidate, find both but take most pairs of documents with a tenth in common
for candidates; the paper names no threshold for them. Ours find both, and few others. The estimate from 96 hashes has
a standard error of at most 0.051, so `min_similarity` 0.5 loses 1 in 4,000 pairs at 0.667. Bought with 20 buckets, the
probability at 0.667 would be 0.988; with 16, 0.970.
"""

import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig

from .documents import EXAMPLE_CHARACTERS, Ledger, Step, list_parts, read_json, write_json


SKETCHES_FOLDER, REMOVED_FOLDER, SUMMARY_FILE = "sketches", "removed", "summary.json"
LARGEST_CLUSTERS, REMOVED_SHOWN = 5, 3

# A bucket's rows are read up to, but without, the largest 32-bit number.
MAX_HASH = (1 << 32) - 2
# Memory is bounded by these; the result does not depend on those below the first.
PIECE_CHARACTERS = 1 << 18
GRAMS_AT_ONCE = 1 << 10
PAIRS_AT_ONCE = 1 << 16
LINES_TO_BUFFER = 1000
# In a group with one signature, so many documents that are unlike one another are compared with all others.
MAX_LEADERS = 64


@dataclass
class DeduplicateConfig:
    """How duplicates are found."""

    method: Literal["minhash", "exact", "none"] = field(
        default="minhash",
        metadata={"help": "Near-duplicates, only equal texts (white space at the ends aside), none."},
    )
    ngram: int = field(default=5, metadata={"help": "Words in a shingle."})
    buckets: int = field(default=24, metadata={"help": "Groups of hashes; documents that agree on one are compared."})
    hashes_per_bucket: int = field(default=4, metadata={"help": "Hashes that must all agree for a candidate."})
    min_similarity: float = field(
        default=0.5,
        metadata={"help": "Share of all hashes (estimated Jaccard) from which a candidate is a duplicate."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the hash functions."})

    def __post_init__(self) -> None:
        for name in ("ngram", "buckets", "hashes_per_bucket"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.buckets > 999:
            raise ValueError(f"`buckets` must be at most 999, got {self.buckets}.")
        if not 0.0 < self.min_similarity <= 1.0:
            raise ValueError(f"`min_similarity` must be above 0 and at most 1, got {self.min_similarity}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"`seed` must be from 0 to 2**32 - 1, got {self.seed}.")

    def minhash(self) -> MinhashConfig:
        """As datatrove has it. Equal texts are one bucket with 128 bits of their hash."""
        buckets, hashes = (1, 4) if self.method == "exact" else (self.buckets, self.hashes_per_bucket)
        return MinhashConfig(self.ngram, buckets, hashes, self.seed, hash_config=HashConfig(precision=32))


def candidate_probability(similarity: float, buckets: int, hashes_per_bucket: int) -> float:
    """Chance that two documents of a Jaccard similarity agree on all hashes of one bucket at least."""
    return 1.0 - (1.0 - similarity**hashes_per_bucket) ** buckets


# Words

BREAK, LETTER, WORD, IGNORED = range(4)
# Scripts without spaces between words: Thai and Lao, Tibetan, Burmese, Khmer, Tai, Chinese and Japanese, Yi.
# fmt: off
UNSPACED = [
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19FF), (0x1A20, 0x1AAF), (0x2E80, 0x312F),
    (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0xA4CF), (0xA9E0, 0xA9FF), (0xAA60, 0xAADF),
    (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x16FE0, 0x18DFF), (0x1AFF0, 0x1B2FF), (0x20000, 0x3FFFF),
]
# fmt: on
VARIATION_SELECTORS = [(0xFE00, 0xFE0F), (0xE0100, 0xE01EF)]
# Odd 64-bit numbers without a pattern; arithmetic is modulo 2**64.
CHARACTER_BASE, WORD_BASE = 0x9FB21C651E98DF25, 0xD6E8FEB86659FD93
CHARACTER_INVERSE = pow(CHARACTER_BASE, -1, 1 << 64)


@cache
def _kinds() -> np.ndarray:
    """(0x110000,) uint8: what each character does to words."""
    kinds = np.full(0x110000, BREAK, dtype=np.uint8)
    for code in range(0x40000):  # nothing is assigned above but selectors and private use
        category = unicodedata.category(chr(code))
        if category[0] in "LNM":
            kinds[code] = LETTER
        elif category == "Cf":  # soft hyphens, joiners: not seen
            kinds[code] = IGNORED
    for first, last in UNSPACED:
        script = kinds[first : last + 1]
        script[script == LETTER] = WORD
    for first, last in VARIATION_SELECTORS:
        kinds[first : last + 1] = IGNORED
    return kinds


@cache
def _powers(base: int, count: int) -> np.ndarray:
    """(count,) uint64: base**0, base**1, ... modulo 2**64."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _mix(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64 in place, one to one, so that each bit depends on all (the steps are SplitMix64's finaliser)."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def word_hashes(text: str) -> np.ndarray:
    """(words,) uint64: a hash of each word of the normalised text.

    Normalised: NFKC, lower case, punctuation and symbols as white space; a character is a word in scripts that put no
    spaces between words. All in NumPy, in pieces: a regular expression and a hash function called for each word take
    twice as long, and make an object of each word of a large document.
    """
    hashes = [np.empty(0, dtype=np.uint64)]
    for raw in _pieces(text):
        # May be longer than it was.
        hashes += map(_piece_hashes, _pieces(unicodedata.normalize("NFKC", raw).lower()))
    return np.concatenate(hashes)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end between words; a word that fills a whole piece is cut."""
    start = 0
    while start < len(text):
        end = start + PIECE_CHARACTERS
        if end < len(text):
            space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = end if space < 0 else space
        yield text[start:end]
        start = end


def _piece_hashes(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = _kinds()[codes]
    ignored = kinds == IGNORED
    if ignored.any():
        codes, kinds = codes[~ignored], kinds[~ignored]
    before = np.concatenate([[BREAK], kinds[:-1]]).astype(np.uint8)
    starts = np.flatnonzero((kinds == WORD) | ((kinds == LETTER) & (before != LETTER)))
    if not len(starts):
        return np.empty(0, dtype=np.uint64)
    # A word is a polynomial over its characters. Those between words count as zero, so that a word's sum may run on to
    # the next one's start; the power it starts with is divided out.
    terms = codes * (kinds != BREAK).view(np.uint8) * _powers(CHARACTER_BASE, PIECE_CHARACTERS)[: len(codes)]
    return _mix(np.add.reduceat(terms, starts) * _powers(CHARACTER_INVERSE, PIECE_CHARACTERS)[starts])


def shingle_hashes(text: str, ngram: int) -> np.ndarray:
    """(shingles,) uint64, at least one: hashes of the text's word n-grams, in their order, repeats included.

    Fewer words than `ngram` are one shingle; a text without a word (signs alone) is one by itself, stripped.
    """
    words = word_hashes(text)
    if not len(words):
        stripped = text.strip().encode("utf-8", "surrogatepass")
        return np.frombuffer(hashlib.blake2b(stripped, digest_size=8).digest(), dtype="<u8")
    size = min(ngram, len(words))
    count = len(words) - size + 1
    # Their number takes part: three words are no 5-gram, whatever their sum.
    shingles = np.full(count, size, dtype=np.uint64)
    for offset, power in enumerate(_powers(WORD_BASE, ngram)[:size]):
        shingles += words[offset : offset + count] * power
    return _mix(shingles)


# Steps


class Signatures(MinhashDedupSignature):
    """The first step: signatures by bucket, as datatrove's, and for each document a sketch, all its hashes.

    datatrove's run writes and sorts the files, in a folder of this task's own, from which they are moved into place
    when all are there. Words, shingles and hashes are ours: no word tokenizer needs to be installed, and memory does
    not grow with shingles times hashes.

    Args:
        folder: Where to write.
        config: How duplicates are found.
        ledger: The stage's.
    """

    name = "signatures"
    _sketches: BinaryIO

    def __init__(self, folder: Path, config: DeduplicateConfig, ledger: Ledger):
        PipelineStep.__init__(self)  # datatrove's own loads a word tokenizer
        self.folder, self.ledger = Path(folder), ledger
        self.method = config.method
        self.config = config.minhash()
        self.skip_existing_sigs = False

    @cached_property
    def multipliers(self) -> np.ndarray:
        """(hashes, 1) uint64, odd: hash i of a shingle is the upper half of it times multiplier i."""
        hashes = self.config.num_buckets * self.config.hashes_per_bucket
        # This generator's stream is frozen: the same in all versions of NumPy.
        random_state = np.random.RandomState(self.config.seed)
        return random_state.randint(0, 1 << 64, size=(hashes, 1), dtype=np.uint64) | np.uint64(1)

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the word n-grams; of the whole stripped text where only equal texts are duplicates."""
        if self.method == "exact":
            stripped = text.strip().encode("utf-8", "surrogatepass")
            return np.frombuffer(hashlib.blake2b(stripped, digest_size=16).digest(), dtype="<u4")
        return shingle_hashes(text, self.config.n_grams)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """The smallest of each hash over all shingles, by bucket; it is written to the sketches, too."""
        hashes = shingles if self.method == "exact" else self.smallest(shingles)
        hashes = np.minimum(hashes, MAX_HASH).astype("<u4")
        self._sketches.write(hashes.tobytes())
        return hashes.reshape(self.config.num_buckets, -1).tolist()

    def smallest(self, shingles: np.ndarray) -> np.ndarray:
        """(hashes,) uint64 below 2**32: MinHash."""
        smallest = np.full(len(self.multipliers), np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(shingles), GRAMS_AT_ONCE):
            products = self.multipliers * shingles[start : start + GRAMS_AT_ONCE]
            np.minimum(smallest, products.min(axis=1), out=smallest)
        # The order of the products is that of their upper halves: only the smallest need to be shifted.
        return smallest >> np.uint64(32)

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        """Write the signatures and sketches of part `rank`."""
        with _temporary_folder(self.folder, rank) as temporary:
            self.output_folder = get_datafolder(str(temporary))
            with open(temporary / "sketches", "wb") as self._sketches:
                super().run(data, rank, world_size)
            hashes = self.config.num_buckets * self.config.hashes_per_bucket
            _write_npy(temporary / "sketches", hashes, temporary / "sketches.npy")
            for file in sorted(temporary.glob("bucket_*/*")):
                _move(file, self.folder / file.relative_to(temporary))
            _move(temporary / "sketches.npy", self.folder / SKETCHES_FOLDER / f"{rank:05d}.npy")


class Buckets(MinhashDedupBuckets):
    """The second step: datatrove's, with files that appear whole. Tasks: any number up to `buckets`, or a multiple of it.

    Several tasks for a bucket divide the range of hashes by the largest part's; datatrove takes the first part's,
    which may be empty.

    Args:
        signatures: Where `Signatures` wrote.
        folder: Where to write.
        config: How duplicates are found.
        ledger: The stage's.
    """

    name = "buckets"

    def __init__(self, signatures: Path, folder: Path, config: DeduplicateConfig, ledger: Ledger):
        super().__init__(str(signatures), str(folder), config=config.minhash(), lines_to_buffer=LINES_TO_BUFFER)
        self.folder, self.ledger = Path(folder), ledger

    def get_worker_hash_range(self, sig_files: list[str], rank: int, world_size: int) -> tuple[int, int]:
        """First hash of the task, and the one past its last."""
        largest = max(sig_files, key=lambda file: (self.input_folder.size(file), file), default=None)
        workers = world_size // self.config.num_buckets
        row_bytes = 4 * (self.config.hashes_per_bucket + 1)
        if largest is None or self.input_folder.size(largest) < workers * row_bytes:
            # Too few documents to divide: the bucket's first task takes all.
            return (0, MAX_HASH + 1) if rank % workers == 0 else (MAX_HASH + 1, MAX_HASH + 1)
        return super().get_worker_hash_range([largest], rank, world_size)

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the pairs of a range of a bucket's hashes, of a bucket, or of several."""
        buckets = self.config.num_buckets
        if world_size >= buckets:
            self._run_bucket(rank, world_size)
        else:
            for bucket in range(rank, buckets, world_size):
                self._run_bucket(bucket, buckets)

    def _run_bucket(self, rank: int, world_size: int) -> None:
        with _temporary_folder(self.folder, rank) as temporary:
            self.output_folder = get_datafolder(str(temporary))
            super().run(None, rank, world_size)
            for file in temporary.glob("*.dups"):
                _move(file, self.folder / file.name)


class Clusters(Step):
    """The third step, one task: which documents go, and which one is kept in the place of each.

    Documents with one signature in a bucket are compared by their sketches with the first of them, those unlike it
    with the first of those, and so on; what is alike is joined. In each component the documents are then taken in
    order of (part, row), and one goes only if it is like one that was kept: so its duplicate is still there, and a
    chain of documents, each a little unlike the last, removes no document for one that it does not resemble.
    Memory grows with the documents that have a verified duplicate, and with the largest group of one signature.

    Args:
        signatures: Where `Signatures` wrote.
        buckets: Where `Buckets` wrote.
        folder: Where to write.
        parts_folder: The parts that `Signatures` read.
        config: How duplicates are found.
        ledger: The stage's.
    """

    name = "clusters"

    def __init__(
        self,
        signatures: Path,
        buckets: Path,
        folder: Path,
        parts_folder: Path,
        config: DeduplicateConfig,
        ledger: Ledger,
    ):
        super().__init__(ledger)
        self.signatures, self.buckets = Path(signatures), Path(buckets)
        self.folder, self.parts_folder = Path(folder), Path(parts_folder)
        self.min_similarity = config.min_similarity
        self.hashes_per_bucket = config.minhash().hashes_per_bucket

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:
        """Write what to remove of each part, and the summary."""
        assert world_size == 1, "clusters are one task"
        sketches = Sketches(self.signatures / SKETCHES_FOLDER)
        assert len(sketches.parts) == len(list_parts(self.parts_folder)), "parts without signatures, or the reverse"
        components = np.empty((0, 2), dtype=np.uint64)
        for file in sorted(self.buckets.glob("*.dups")):
            edges = [components]
            for members, groups in read_groups(file):
                edges.append(verify(members, groups, sketches, self.min_similarity))
            components = join(np.concatenate(edges))
        removed, kept = choose(components, sketches, self.min_similarity, self.hashes_per_bucket)
        self._write(removed, kept)

    def _write(self, removed: np.ndarray, kept: np.ndarray) -> None:
        parts = list_parts(self.parts_folder)
        order = np.argsort(removed)
        removed, kept = removed[order], kept[order]
        kept_source, removed_source = read_sources(parts, kept), read_sources(parts, removed)
        part_of, row_of = _part(removed), _row(removed)
        for part in range(len(parts)):
            of_part = slice(*np.searchsorted(part_of, [part, part + 1]))
            table = pa.table(
                {
                    "row": row_of[of_part],
                    "kept_part": _part(kept[of_part]),
                    "kept_row": _row(kept[of_part]),
                    "kept_source": pa.array(kept_source[of_part], pa.string()),
                }
            )
            with _temporary_folder(self.folder, part) as temporary:
                pyarrow.parquet.write_table(table, temporary / "removed")
                _move(temporary / "removed", self.folder / REMOVED_FOLDER / f"{part:05d}.parquet")
        write_json(self.folder / SUMMARY_FILE, summarise(removed, kept, kept_source, removed_source))


class DropDuplicates(Step):
    """The last step, between ReadPart and WritePart: drops the rows of part `rank` that are not kept.

    Args:
        clusters: Where `Clusters` wrote.
        ledger: The stage's.
    """

    name = "drop duplicates"

    def __init__(self, clusters: Path, ledger: Ledger):
        super().__init__(ledger)
        self.clusters = Path(clusters)

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents that stay."""
        table = pyarrow.parquet.read_table(self.clusters / REMOVED_FOLDER / f"{rank:05d}.parquet")
        kept_source = dict(zip(table["row"].to_pylist(), table["kept_source"].to_pylist()))
        for row, document in enumerate(data):
            if row not in kept_source:
                yield document
            elif kept_source[row] == document.metadata["source"]:
                self.ledger.drop(document, "duplicate")
            else:
                self.ledger.drop(document, f"duplicate of {kept_source[row]}")


# Clusters, by ids: uint64, part << 32 | row, in whose order documents are kept.


def _id(part: np.ndarray, row: np.ndarray) -> np.ndarray:
    return part.astype(np.uint64) << np.uint64(32) | row.astype(np.uint64)


def _part(ids: np.ndarray) -> np.ndarray:
    return (ids >> np.uint64(32)).astype(np.int64)


def _row(ids: np.ndarray) -> np.ndarray:
    return (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)


class Sketches:
    """All hashes of all documents, memory-mapped."""

    def __init__(self, folder: Path):
        self.parts = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))]

    def read(self, ids: np.ndarray) -> np.ndarray:
        """(n, hashes) uint32. Each is read once, in the files' order."""
        unique, inverse = np.unique(ids, return_inverse=True)
        parts, starts = np.unique(_part(unique), return_index=True)
        rows = np.split(_row(unique), starts[1:])
        return np.concatenate([self.parts[part][of_part] for part, of_part in zip(parts, rows)])[inverse]

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(n,): estimated Jaccard similarity of pairs of documents."""
        similarity = np.empty(len(first))
        for start in range(0, len(first), PAIRS_AT_ONCE):
            some = slice(start, start + PAIRS_AT_ONCE)
            similarity[some] = (self.read(first[some]) == self.read(second[some])).mean(axis=1)
        return similarity


def read_groups(file: Path, rows_at_once: int = 1 << 20) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Documents with equal signatures, whole groups at a time.

    Yields:
        Their ids, ascending in a group, and the number of the group of each, ascending.
    """
    carried = np.empty((0, 4), dtype="<u4")
    with open(file, "rb") as opened:
        while True:
            read = np.fromfile(opened, dtype="<u4", count=4 * rows_at_once).reshape(-1, 4)
            pairs = np.concatenate([carried, read])
            if not len(pairs):
                return
            first, second = _id(pairs[:, 0], pairs[:, 1]), _id(pairs[:, 2], pairs[:, 3])
            # Pairs of neighbours: a group goes on where a pair begins with the end of the last.
            starts = np.flatnonzero(np.concatenate([[True], first[1:] != second[:-1]]))
            if len(read):
                # The last group may go on in what is still to be read.
                carried = pairs[starts[-1] :]
                first, second, starts = first[: starts[-1]], second[: starts[-1]], starts[:-1]
            if len(starts):
                members = np.insert(second, starts, first[starts])
                begins = np.zeros(len(members), dtype=np.int64)
                begins[starts + np.arange(len(starts))] = 1
                yield members, np.cumsum(begins)
            if not len(read):
                return


def verify(members: np.ndarray, groups: np.ndarray, sketches: Sketches, min_similarity: float) -> np.ndarray:
    """(n, 2) ids: pairs of a group's leader and a member that its sketch resembles.

    A group's first document is its leader; those unlike it have the first of themselves as their leader, and so on, for
    all groups at once. The work is linear in the members of a group times its leaders, of which there are at most
    `MAX_LEADERS`; what is like none of them is left to the other buckets.
    """
    edges = [np.empty((0, 2), dtype=np.uint64)]
    for _ in range(MAX_LEADERS):
        if not len(members):
            break
        starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
        leaders = np.repeat(members[starts], np.diff(np.append(starts, len(members))))
        alike = sketches.similarity(leaders, members) >= min_similarity
        others = alike & (leaders != members)
        edges.append(np.stack([leaders[others], members[others]], axis=1))
        members, groups = members[~alike], groups[~alike]
    return np.concatenate(edges)


def join(edges: np.ndarray) -> np.ndarray:
    """The connected components of a graph.

    Args:
        edges: (n, 2) ids.

    Returns:
        (documents, 2) ids: each document, ascending, and the smallest of its component.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(edges):
        return edges
    documents, numbers = np.unique(edges, return_inverse=True)
    first, second = numbers.reshape(edges.shape).T
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (first, second)), shape=(len(documents),) * 2)
    _, labels = connected_components(graph, directed=False)
    _, smallest = np.unique(labels, return_index=True)
    return np.stack([documents, documents[smallest][labels]], axis=1)


def choose(
    components: np.ndarray, sketches: Sketches, min_similarity: float, hashes_per_bucket: int
) -> tuple[np.ndarray, np.ndarray]:
    """What to remove of each component, and what is kept in its place.

    Args:
        components: (documents, 2) ids, as from `join`.

    Returns:
        Ids of the documents to remove, and for each that of a document that is kept and resembles it.
    """
    documents, smallest = components[components[:, 0] != components[:, 1]].T
    alike = sketches.similarity(smallest, documents) >= min_similarity
    removed, kept = [documents[alike]], [smallest[alike]]
    # What is unlike its component's first document: chains. Only those that share a bucket are compared again, so that
    # a long chain takes no more than time in proportion.
    documents, smallest = documents[~alike], smallest[~alike]
    order = np.lexsort([documents, smallest])
    documents, smallest = documents[order], smallest[order]
    component = None
    for start in range(0, len(documents), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        for document, first, sketch in zip(documents[some], smallest[some], sketches.read(documents[some])):
            if first != component:
                component, found = first, _Kept(min_similarity, hashes_per_bucket)
            resembled = found.find_or_keep(document, sketch)
            if resembled is not None:
                removed.append(np.array([document]))
                kept.append(np.array([resembled]))
    return np.concatenate(removed), np.concatenate(kept)


class _Kept:
    """Documents of a component that are kept, by their signatures in each bucket."""

    def __init__(self, min_similarity: float, hashes_per_bucket: int):
        self.min_similarity, self.hashes_per_bucket = min_similarity, hashes_per_bucket
        self.ids: list[np.uint64] = []
        self.sketches: list[np.ndarray] = []
        self.by_signature: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def find_or_keep(self, id: np.uint64, sketch: np.ndarray) -> np.uint64 | None:
        """The first kept document that this one resembles; where there is none, it is kept itself."""
        signatures = list(enumerate(map(bytes, sketch.reshape(-1, self.hashes_per_bucket))))
        near = sorted({number for signature in signatures for number in self.by_signature.get(signature, ())})
        for number in near:
            if (self.sketches[number] == sketch).mean() >= self.min_similarity:
                return self.ids[number]
        for signature in signatures:
            if len(self.by_signature[signature]) < MAX_LEADERS:
                self.by_signature[signature].append(len(self.ids))
        self.ids.append(id)
        self.sketches.append(sketch)
        return None


def read_removed(clusters: str | Path, part: int) -> list[tuple[int, int, int]]:
    """The rows to remove of a part, ascending: row, and part and row of the document kept in its place."""
    table = pyarrow.parquet.read_table(Path(clusters) / REMOVED_FOLDER / f"{part:05d}.parquet")
    return list(zip(*(table[name].to_pylist() for name in ("row", "kept_part", "kept_row"))))


# Report


def read_sources(parts: list[Path], ids: np.ndarray) -> np.ndarray:
    """(n,) str: names of the sources of documents."""
    sources = np.empty(len(ids), dtype=object)
    part_of = _part(ids)
    for part in np.unique(part_of):
        of_part = np.flatnonzero(part_of == part)
        column = pyarrow.parquet.read_table(parts[part], columns=["source"])["source"].combine_chunks()
        sources[of_part] = column.take(pa.array(_row(ids[of_part]))).to_numpy(zero_copy_only=False)
    return sources


def summarise(
    removed: np.ndarray, kept: np.ndarray, kept_source: np.ndarray, removed_source: np.ndarray
) -> dict[str, Any]:
    """Counts as `duplicates_report` returns them, with (part, row) in the place of documents.

    A cluster is a document that is kept and all that are removed in its favour.
    """
    clusters, cluster_of, counts = np.unique(kept, return_inverse=True, return_counts=True)
    sizes, numbers = np.unique(counts + 1, return_counts=True)
    pairs: dict[str, int] = defaultdict(int)
    for kept_name, removed_name in zip(kept_source, removed_source):
        pairs[f"{kept_name} -> {removed_name}"] += 1
    largest = []
    for cluster in np.argsort(-counts, kind="stable")[:LARGEST_CLUSTERS]:
        shown = removed[cluster_of == cluster][:REMOVED_SHOWN]
        largest.append(
            {
                "size": int(counts[cluster]) + 1,
                "kept": _place(clusters[cluster]),
                "removed": [_place(id) for id in shown],
            }
        )
    return {
        "clusters": len(clusters),
        "documents_in_clusters": len(clusters) + len(removed),
        "removed": len(removed),
        "cluster_sizes": {str(size): int(number) for size, number in zip(sizes, numbers)},
        "pairs_between_sources": dict(sorted(pairs.items(), key=lambda item: (-item[1], item[0]))),
        "largest": largest,
    }


def _place(id: np.uint64) -> list[int]:
    return [int(id) >> 32, int(id) & 0xFFFFFFFF]


def duplicates_report(clusters: str | Path, parts_folder: str | Path) -> dict[str, Any]:
    """What was found, for a report.

    Args:
        clusters: Where `Clusters` wrote.
        parts_folder: The parts that `Signatures` read.

    Returns:
        `clusters` (documents kept in the place of others), `documents_in_clusters`, `removed`, `cluster_sizes` (how
        many clusters by their size), `pairs_between_sources` ("kept -> removed": documents), and the `largest`
        clusters: `size`, the document `kept` and some `removed`, each with `source`, `id` and the start of its `text`.
    """
    summary = read_json(Path(clusters) / SUMMARY_FILE)
    parts = list_parts(parts_folder)
    for cluster in summary["largest"]:
        cluster["kept"] = _shown(parts, *cluster["kept"])
        cluster["removed"] = [_shown(parts, *place) for place in cluster["removed"]]
    return summary


def _shown(parts: list[Path], part: int, row: int) -> dict[str, str]:
    with pyarrow.parquet.ParquetFile(parts[part]) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                (document,) = file.read_row_group(group, columns=["source", "id", "text"]).slice(row, 1).to_pylist()
                return {**document, "text": document["text"][:EXAMPLE_CHARACTERS]}
            row -= rows
    raise AssertionError(f"{parts[part]} has fewer rows than when its duplicates were found")


# Files


@contextmanager
def _temporary_folder(folder: Path, task: int) -> Iterator[Path]:
    """A folder of this run of a task alone, on the file system of its target. What a killed run left is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".writing-{task:05d}-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".writing-{task:05d}-", dir=folder) as temporary:
        yield Path(temporary)


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)


def _write_npy(numbers: Path, columns: int, target: Path) -> None:
    """Raw 32-bit numbers as a .npy file of so many columns."""
    header = {"descr": "<u4", "fortran_order": False, "shape": (numbers.stat().st_size // (4 * columns), columns)}
    with open(numbers, "rb") as read, open(target, "wb") as write:
        np.lib.format.write_array_header_1_0(write, header)
        shutil.copyfileobj(read, write)

"""Near-duplicates: how many of those planted in real text are found, by how much they share, and what else is removed.

    python benchmarks/deduplication.py                    # 200 pairs a level, in a few thousand documents
    python benchmarks/deduplication.py --pairs 1000

The text is that of Python's own standard library: doc strings and comments. Documents of 60 to 400 words have words
replaced, deleted and inserted until their distinct 5-grams overlap to a level: by Jaccard, or 80% of each one's. The
originals are one part, the copies another, and what is between them the rest of the text. Beside recall stand the
probability of a candidate in closed form, and the same, measured and in closed form, of the paper's ten hashes, where
one that agrees makes a candidate. Unrelated pairs share less than a tenth. One draw of hash functions decides all of
its pairs together, so that draws scatter more than pairs do: several are pooled, and the worst is shown.
"""

import argparse
import io
import os
import random
import statistics
import sys
import tempfile
import time
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import report, save
from loguru import logger

from hfgpt.data.deduplicate import (
    SKETCHES_FOLDER,
    Buckets,
    Clusters,
    DeduplicateConfig,
    Signatures,
    Sketches,
    candidate_probability,
    read_removed,
)
from hfgpt.data.documents import Ledger, PartWriter, ReadPart, make_document


logger.remove()  # datatrove's steps say what they do

Grams = set[tuple[str, ...]]
PAPER_HASHES = 10
UNRELATED_BELOW, UNRELATED_PAIRS = 0.1, 100_000


def library_words(count: int) -> list[str]:
    """Words of the standard library's doc strings and comments, from so many bytes of its files."""
    words: list[str] = []
    for file in sorted(Path(os.__file__).parent.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(file.parts) or len(words) >= count:
            continue
        try:
            for token in tokenize.tokenize(io.BytesIO(file.read_bytes()).readline):
                if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and '"""' in token.string):
                    words += "".join(c if c.isalnum() else " " for c in token.string.lower()).split()
        except (SyntaxError, tokenize.TokenError):  # left out of the library's tests, but not everywhere
            continue
    return words


def grams(words: list[str], size: int) -> Grams:
    """Distinct n-grams."""
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def jaccard(a: Grams, b: Grams) -> float:
    """Shared grams of all."""
    return len(a & b) / len(a | b)


def share_of_each(a: Grams, b: Grams) -> float:
    """Shared grams of the larger one's."""
    return len(a & b) / max(len(a), len(b))


LEVELS: list[tuple[str, Callable[[Grams, Grams], float], float]] = [
    ("Jaccard 0.95", jaccard, 0.95),
    ("Jaccard 0.9", jaccard, 0.9),
    ("Jaccard 0.8", jaccard, 0.8),
    ("80% of each one's", share_of_each, 0.8),
    ("Jaccard 0.5", jaccard, 0.5),
    ("Jaccard 0.3", jaccard, 0.3),
]


def edited(
    words: list[str],
    vocabulary: list[str],
    measure: Callable[[Grams, Grams], float],
    level: float,
    size: int,
    random_state: random.Random,
) -> list[str]:
    """A copy with words replaced, deleted and inserted until it is at the level or just below."""
    original, copy = grams(words, size), list(words)
    while measure(original, grams(copy, size)) > level:
        place, kind = random_state.randrange(len(copy)), random_state.randrange(3)
        copy[place : place + (kind != 0)] = [random_state.choice(vocabulary)] if kind != 2 else []
    return copy


def plant(pairs: int, size: int, seed: int) -> tuple[list[list[list[str]]], list[int]]:
    """Three parts (originals, copies, the rest) of documents as words, and the level of each copy."""
    random_state = random.Random(seed)
    words = library_words(sys.maxsize)
    documents, start = [], 0
    while start < len(words):
        length = random_state.randint(60, 400)
        documents.append(words[start : start + length])
        start += length
    documents.pop()
    random_state.shuffle(documents)
    # Originals that are like no other: where one is removed for another, its copy has nothing left to be like.
    originals: list[list[str]] = []
    rest: list[list[str]] = []
    seen: Grams = set()
    for document in documents:
        own = grams(document, size)
        alone = len(own & seen) < UNRELATED_BELOW * len(own)
        (originals if alone and len(originals) < pairs * len(LEVELS) else rest).append(document)
        seen |= own
    if len(originals) < pairs * len(LEVELS):
        sys.exit(
            f"The standard library makes {len(originals)} originals: at most {len(originals) // len(LEVELS)} pairs."
        )
    levels = [level for level in range(len(LEVELS)) for _ in range(pairs)]
    copies = [
        edited(document, words, *LEVELS[level][1:], size, random_state) for document, level in zip(originals, levels)
    ]
    return [originals, copies, rest[: len(levels)]], levels


def deduplicate(parts: list[list[list[str]]], config: DeduplicateConfig, folder: Path) -> dict[str, float]:
    """Run the steps; the seconds of each."""
    for number, documents in enumerate(parts):
        with PartWriter(folder / "parts" / f"{number:05d}.parquet") as writer:
            for row, words in enumerate(documents):
                writer.write(make_document(" ".join(words), f"{number}-{row}", f"part {number}"))
    ledger, seconds = Ledger(), {}
    signatures, buckets, clusters = (folder / name for name in ("signatures", "buckets", "clusters"))
    started = time.perf_counter()
    for rank in range(len(parts)):
        read = ReadPart(folder / "parts", ledger).run(None, rank, len(parts))
        Signatures(signatures, config, ledger).run(read, rank, len(parts))
    seconds["signatures"] = time.perf_counter() - started
    started = time.perf_counter()
    for rank in range(config.buckets):
        Buckets(signatures, buckets, config, ledger).run(None, rank, config.buckets)
    seconds["buckets"] = time.perf_counter() - started
    started = time.perf_counter()
    Clusters(signatures, buckets, clusters, folder / "parts", config, ledger).run()
    seconds["clusters"] = time.perf_counter() - started
    return seconds


def share_alike(first: np.ndarray, second: np.ndarray, buckets: int, hashes_per_bucket: int) -> np.ndarray:
    """(n,) bool: which pairs of sketches agree on all hashes of a bucket."""
    alike = (first == second)[:, : buckets * hashes_per_bucket].reshape(len(first), buckets, hashes_per_bucket)
    return alike.all(axis=2).any(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200, help="planted at each level (default: 200)")
    parser.add_argument("--buckets", type=int, default=DeduplicateConfig.buckets)
    parser.add_argument("--hashes-per-bucket", type=int, default=DeduplicateConfig.hashes_per_bucket)
    parser.add_argument("--min-similarity", type=float, default=DeduplicateConfig.min_similarity)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=5, help="hash functions, each on the same text (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the results to FILE, one JSON object a line")
    arguments = parser.parse_args()
    configs = [
        DeduplicateConfig(
            buckets=arguments.buckets,
            hashes_per_bucket=arguments.hashes_per_bucket,
            min_similarity=arguments.min_similarity,
            seed=seed,
        )
        for seed in range(arguments.seed, arguments.seed + arguments.draws)
    ]
    config = configs[0]
    parts, levels = plant(arguments.pairs, config.ngram, arguments.seed)
    size = sum(len(" ".join(words)) for documents in parts for words in documents)
    documents = sum(map(len, parts))
    part_grams = [[grams(words, config.ngram) for words in part] for part in parts]
    exact = np.array([jaccard(a, b) for a, b in zip(part_grams[0], part_grams[1])])
    # Pairs of different texts, of which almost all share nothing.
    random_state = np.random.default_rng(arguments.seed)
    first, second = random_state.integers([[len(parts[0])], [len(parts[2])]], size=(2, UNRELATED_PAIRS))
    gone, candidates, paper, true, seconds = [], [], [], [], []
    unrelated = {"ours": 0.0, "paper": 0.0}
    for draw in configs:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            seconds.append(deduplicate(parts, draw, folder))
            sketches = [np.array(part) for part in Sketches(folder / "signatures" / SKETCHES_FOLDER).parts]
            removed = [read_removed(folder / "clusters", part) for part in range(len(parts))]
        gone.append(np.isin(np.arange(len(levels)), [row for row, *_ in removed[1]]))
        ours, theirs = (draw.buckets, draw.hashes_per_bucket), (PAPER_HASHES, 1)
        candidates.append(share_alike(sketches[0], sketches[1], *ours))
        paper.append(share_alike(sketches[0], sketches[1], *theirs))
        for name, form in (("ours", ours), ("paper", theirs)):
            alike = np.flatnonzero(share_alike(sketches[0][first], sketches[2][second], *form))
            shared = [jaccard(part_grams[0][first[pair]], part_grams[2][second[pair]]) for pair in alike]
            count = sum(similarity < UNRELATED_BELOW for similarity in shared)
            unrelated[name] += count / UNRELATED_PAIRS / len(configs)
        true += [
            jaccard(part_grams[part][row], part_grams[kept_part][kept_row])
            for part in range(len(parts))
            for row, kept_part, kept_row in removed[part]
        ]

    rows: list[dict[str, Any]] = []
    for level, (name, *_) in enumerate(LEVELS):
        here = np.array(levels) == level
        forms = [(config.buckets, config.hashes_per_bucket), (PAPER_HASHES, 1)]
        expected = [np.mean([candidate_probability(s, *form) for s in exact[here]]) for form in forms]
        found = [one[here].mean() for one in gone]
        rows.append(
            {
                "name": name,
                "pairs": int(here.sum()) * len(configs),
                "jaccard": exact[here].mean(),
                "removed": np.mean(found),
                "removed_lowest": min(found),
                "candidates": np.mean([one[here] for one in candidates]),
                "expected": expected[0],
                "paper": np.mean([one[here] for one in paper]),
                "paper_expected": expected[1],
            }
        )
    took = {name: statistics.median(draw[name] for draw in seconds) for name in seconds[0]}
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "planted": lambda row: row["name"],
        "pairs": lambda row: f"{row['pairs']}",
        "mean Jaccard": lambda row: f"{row['jaccard']:.3f}",
        "removed": lambda row: f"{row['removed']:.3f}",
        "in the worst draw": lambda row: f"{row['removed_lowest']:.3f}",
        "candidates": lambda row: f"{row['candidates']:.3f}",
        "in closed form": lambda row: f"{row['expected']:.3f}",
        "candidates of the paper's 10 hashes": lambda row: f"{row['paper']:.3f}",
        "those in closed form": lambda row: f"{row['paper_expected']:.3f}",
    }
    settings = f"{len(configs)} draws of {config.buckets} buckets x {config.hashes_per_bucket} hashes, similarity from {config.min_similarity}"
    report(f"{settings}, {documents:,} documents, {size / 1e6:.1f} MB", rows, columns)
    below, none = (
        sum(similarity < 0.5 for similarity in true),
        sum(similarity < UNRELATED_BELOW for similarity in true),
    )
    print(
        f"\nremoved: {len(true)}; with a true Jaccard below 0.5: {below} ({below / max(len(true), 1):.1%}), the lowest "
        f"{min(true, default=1.0):.3f}; unrelated: {none}"
    )
    print(
        f"candidates among unrelated pairs: {unrelated['ours']:.3%}; of the paper's 10 hashes: {unrelated['paper']:.3%}"
    )
    rates = f"{documents / took['signatures']:,.0f} documents/s, {size / 1e6 / took['signatures']:.1f} MB/s"
    print(", ".join(f"{name} {one:.2f} s" for name, one in took.items()) + f"; signatures: {rates} on one core")
    save(
        arguments.json,
        {
            "benchmark": "deduplication",
            "documents": documents,
            "bytes": size,
            "levels": [{key: value if key == "name" else float(value) for key, value in row.items()} for row in rows],
            "removed": len(true),
            "removed_below_half": below,
            "removed_unrelated": none,
            "unrelated_candidates": unrelated,
            "seconds": took,
        },
    )


if __name__ == "__main__":
    main()

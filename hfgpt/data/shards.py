"""The last stages of a corpus: a tokenizer from a bounded sample, the tokens of every part, and the shards.

The sample is stratified by source and language, and a text is in it or not by its hash alone. Parts are tokenized each
by itself, and the shards are cut out of the parts' tokens in the order of the sources. So the bytes of a shard depend on
the recipe and its input, and on nothing else.
"""

import json
import os
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datatrove.data import Document
from transformers import AutoTokenizer

from .documents import BYTES_OUT, Ledger, Step, list_parts, read_json, write_json, written_whole
from .packing import token_dtype
from .readers import in_test_part
from .tokenizer import (
    DocumentEncoder,
    TextSample,
    TokenizerConfig,
    batches,
    load_tokenizer,
    split_text,
    train_tokenizer,
)


SPLITS = ("train", "validation")
MAX_FOLDER_CHARACTERS = 60
ENCODE_BATCH_CHARACTERS = 1_000_000
# A text counts in the sample by pieces of this size, so that one huge document is no sample.
SAMPLE_CHARACTERS = 100_000


def sample_shares(
    strata: Mapping[tuple[str, str], int],
    sample_bytes: int,
    weights: Mapping[str, float] | None = None,
    language_shares: Mapping[str, float] | None = None,
) -> dict[tuple[str, str], int]:
    """How many bytes of each (source, language) the tokenizer is trained on.

    In proportion to the bytes there are, or to the sources' weights in the mixture, or to the shares of the languages
    where those are given. What a stratum is too small to give goes to the others.

    Args:
        strata: Bytes of text by (source, language).
        sample_bytes: Bytes of the whole sample.
        weights: Weight of each source; unnamed sources count 0.
        language_shares: Share of each language; unnamed languages count 0.
    """
    wanted: dict[tuple[str, str], float] = {}
    for (source, language), size in strata.items():
        of_source = sum(other for (name, _), other in strata.items() if name == source)
        wanted[source, language] = size if weights is None else weights.get(source, 0.0) * size / max(of_source, 1)
    if language_shares is None:
        return _fill(wanted, strata, sample_bytes)
    # First the languages, then the sources of each: what a source cannot give, others of its language do.
    by_language: dict[str, dict[tuple[str, str], float]] = {}
    for stratum, want in wanted.items():
        by_language.setdefault(stratum[1], {})[stratum] = want
    there = {language: sum(strata[one] for one in of_it if of_it[one] > 0) for language, of_it in by_language.items()}
    budgets = _fill({language: language_shares.get(language, 0.0) for language in there}, there, sample_bytes)
    filled: dict[tuple[str, str], int] = {}
    for language, of_it in by_language.items():
        filled |= _fill(of_it, strata, budgets[language])
    return {stratum: filled[stratum] for stratum in strata}


Key = TypeVar("Key", str, tuple[str, str])


def _fill(wanted: Mapping[Key, float], there: Mapping[Key, int], budget: int) -> dict[Key, int]:
    """`budget` in the proportions wanted, and no more of anything than is there."""
    shares = dict.fromkeys(wanted, 0)
    open_keys = {key for key, want in wanted.items() if want > 0 and there[key] > 0}
    left = float(budget)
    while open_keys and left >= 1:
        total = sum(wanted[key] for key in sorted(open_keys))
        full = {key for key in open_keys if there[key] <= left * wanted[key] / total}
        if not full:
            for key in open_keys:
                shares[key] = int(left * wanted[key] / total)
            break
        for key in sorted(full):
            shares[key] = there[key]
            left -= there[key]
        open_keys -= full
    return shares


class PlanSample(Step):
    """Writes how many bytes of each source and language the tokenizer is trained on."""

    name = "plan the sample"

    def __init__(
        self,
        ledger_file: Path,
        config: TokenizerConfig,
        weights: dict[str, float] | None,
        shares_file: Path,
        ledger: Ledger,
    ):
        super().__init__(ledger)
        self.ledger_file, self.config, self.weights, self.shares_file = ledger_file, config, weights, shares_file

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the shares."""
        counts = read_json(self.ledger_file)["counts"]
        strata = {
            (source, name.removeprefix(BYTES_OUT)): int(number)
            for source, numbers in counts.items()
            for name, number in sorted(numbers.items())
            if name.startswith(BYTES_OUT)
        }
        shares = sample_shares(strata, self.config.sample_bytes, self.weights, self.config.language_shares)
        if strata and not any(shares.values()):
            raise ValueError(
                f"No text for the tokenizer's sample: `language_shares` names {', '.join(self.config.language_shares or ())} "
                f"and the corpus has {', '.join(sorted({language for _, language in strata}))}."
            )
        write_json(
            self.shares_file,
            [
                {"source": source, "language": language, "bytes": size, "sample_bytes": shares[source, language]}
                for (source, language), size in strata.items()
            ],
        )


class SampleText(Step):
    """Writes what of a part is in the tokenizer's sample: one JSON line a text."""

    name = "sample text"

    def __init__(self, read_from: Path, shares_file: Path, folder: Path, seed: int, ledger: Ledger):
        super().__init__(ledger)
        self.read_from, self.shares_file, self.folder, self.seed = read_from, shares_file, folder, seed

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        """Consume the documents."""
        shares = _read_shares(self.shares_file)
        samples = {stratum: TextSample(share, self.seed) for stratum, (share, _) in shares.items() if share}
        # Enough for the sample with hardly a chance to miss, and not much more.
        limits = {
            stratum: 2**64 if share * 1.2 + 1_000_000 >= size else int((share * 1.2 + 1_000_000) / size * 2**64)
            for stratum, (share, size) in shares.items()
        }
        key = f"{self.seed}".encode()
        for document in data:
            stratum = stratum_of(document)
            if stratum not in samples:
                continue
            for piece in split_text(document.text, SAMPLE_CHARACTERS):
                digest = blake2b(piece.encode(), digest_size=8, key=key).digest()
                if int.from_bytes(digest, "big") < limits[stratum]:
                    samples[stratum].add(piece)
        name = list_parts(self.read_from)[rank].with_suffix(".jsonl").name
        with written_whole(self.folder / name) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for (source, language), sample in samples.items():
                for text in sample:
                    file.write(json.dumps([source, language, text], ensure_ascii=False) + "\n")


class MakeTokenizer(Step):
    """Trains the tokenizer on the sample, or takes the one that the recipe names."""

    name = "make tokenizer"

    def __init__(
        self, config: TokenizerConfig, sample: Path, shares_file: Path, folder: Path, seed: int, ledger: Ledger
    ):
        super().__init__(ledger)
        self.config, self.sample, self.shares_file, self.folder = config, sample, shares_file, folder
        self.seed = seed

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Save the tokenizer, and what it was trained on."""
        taken: list[dict[str, Any]] = []
        if self.config.is_new:
            shares = _read_shares(self.shares_file)
            samples = {stratum: TextSample(share, self.seed) for stratum, (share, _) in shares.items() if share}
            for part in sorted(self.sample.glob("*.jsonl")):
                with open(part, encoding="utf-8") as lines:
                    for line in lines:
                        source, language, text = json.loads(line)
                        samples[source, language].add(text)
            taken = [
                {"source": source, "language": language, "bytes": sample.bytes}
                for (source, language), sample in samples.items()
            ]
            tokenizer = train_tokenizer(chain.from_iterable(samples.values()), self.config.vocab_size)
        else:
            tokenizer = load_tokenizer(self.config)
        tokenizer.save_pretrained(self.folder)
        about = {"vocab_size": len(tokenizer), "trained": self.config.is_new, "sample": taken}
        write_json(self.folder.parent / "about.json", about)


class Tokenize(Step):
    """Writes the tokens of a part, held-out documents apart, and what they come to by language."""

    name = "tokenize"

    def __init__(
        self, tokenizer: Path, read_from: Path, folder: Path, holdout_fraction: float, seed: int, ledger: Ledger
    ):
        super().__init__(ledger)
        self.tokenizer, self.read_from, self.folder = tokenizer, read_from, folder
        self.holdout_fraction, self.seed = holdout_fraction, seed

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        """Consume the documents."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        dtype = token_dtype(len(tokenizer))
        name = list_parts(self.read_from)[rank].stem
        self.folder.mkdir(parents=True, exist_ok=True)
        splits = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
        languages: dict[str, dict[str, int]] = {}
        source = None
        temporary = {split: self.folder / f".{name}.{split}.{os.getpid()}" for split in SPLITS}
        files = {split: open(path, "wb") for split, path in temporary.items()}  # noqa: SIM115 (closed below)
        encoder, end_of_text = DocumentEncoder(tokenizer, dtype), np.array([tokenizer.eos_token_id], dtype).tobytes()
        for batch in batches(data, lambda document: len(document.text), ENCODE_BATCH_CHARACTERS):
            for document, ids in zip(batch, encoder.encode([document.text for document in batch])):
                source = document.metadata["source"]
                # A key of its own: with that of a source's `part`, one division would swallow the other.
                held_out = in_test_part(f"holdout\0{document.text.strip()}", self.holdout_fraction, self.seed)
                split = SPLITS[held_out]
                files[split].write(ids + end_of_text)
                tokens, size = len(ids) // dtype.itemsize + 1, len(document.text.encode())
                _add(splits[split], documents=1, tokens=tokens, bytes=size)
                _add(
                    languages.setdefault(document.metadata["language"] or "und", {}),
                    documents=1,
                    words=len(document.text.split()),
                    characters=len(document.text),
                    bytes=size,
                    tokens=tokens - 1,
                )
                self.ledger.count(source, documents_out=1, bytes_out=size, tokens=tokens)
        for split, file in files.items():
            file.close()
            os.replace(temporary[split], self.folder / f"{name}.{split}.bin")
        write_json(
            self.folder / f"{name}.json",
            {"source": source, "dtype": dtype.str, "splits": splits, "languages": languages},
        )


def read_token_parts(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and numbers of each tokenized part, in order."""
    return [(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]


def plan_shards(parts: Path, sources: list[str], shard_tokens: int) -> dict[str, dict[str, Any]]:
    """Which shards there are, and which tokens of which parts each is made of.

    Returns:
        By split: `sources`, for each its documents, tokens, bytes and shards; a shard has `file`, `tokens`, and
        `pieces` of (file of a part, first token, tokens).
    """
    folders = _folder_names(sources)
    plan: dict[str, dict[str, Any]] = {
        split: {source: {"documents": 0, "tokens": 0, "bytes": 0, "shards": []} for source in sources}
        for split in SPLITS
    }
    for name, part in read_token_parts(parts):
        for split in SPLITS:
            if part["source"] is None:
                continue
            numbers = part["splits"][split]
            entry = plan[split][part["source"]]
            for key, number in numbers.items():
                entry[key] += number
            start = 0
            while start < numbers["tokens"]:
                if not entry["shards"] or entry["shards"][-1]["tokens"] == shard_tokens:
                    file = f"{split}/{folders[part['source']]}/{len(entry['shards']):05d}.bin"
                    entry["shards"].append({"file": file, "tokens": 0, "pieces": []})
                shard = entry["shards"][-1]
                count = min(numbers["tokens"] - start, shard_tokens - shard["tokens"])
                shard["pieces"].append([f"{name}.{split}.bin", start, count])
                shard["tokens"] += count
                start += count
    return plan


class PlanShards(Step):
    """Writes the plan of the shards."""

    name = "plan shards"

    def __init__(self, parts: Path, sources: list[str], shard_tokens: int, plan_file: Path, ledger: Ledger):
        super().__init__(ledger)
        self.parts, self.sources, self.shard_tokens, self.plan_file = parts, sources, shard_tokens, plan_file

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the plan, and the sums by language."""
        languages: dict[str, dict[str, int]] = {}
        dtype = "<u2"
        for _, part in read_token_parts(self.parts):
            dtype = part["dtype"]
            for language, numbers in part["languages"].items():
                _add(languages.setdefault(language, {}), **numbers)
        splits = plan_shards(self.parts, self.sources, self.shard_tokens)
        write_json(self.plan_file, {"dtype": dtype, "splits": splits, "languages": languages})


class WriteShards(Step):
    """Writes shard number `rank` of the plan."""

    name = "write shards"

    def __init__(self, parts: Path, plan_file: Path, folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.parts, self.plan_file, self.folder = parts, plan_file, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Copy its tokens together."""
        shard, itemsize = shards_of(read_json(self.plan_file))[rank]
        path = self.folder / shard["file"]
        with written_whole(path) as temporary, open(temporary, "wb") as file:
            for name, start, count in shard["pieces"]:
                with open(self.parts / name, "rb") as part:
                    part.seek(start * itemsize)
                    left = count * itemsize
                    while left:
                        block = part.read(min(left, 2**24))
                        assert block, f"{name} ends too soon"
                        file.write(block)
                        left -= len(block)


def shards_of(plan: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """All shards of a written plan, in order, with the bytes of a token."""
    itemsize = np.dtype(plan["dtype"]).itemsize
    return [
        (shard, itemsize)
        for split in plan["splits"].values()
        for source in split.values()
        for shard in source["shards"]
    ]


def stratum_of(document: Document) -> tuple[str, str]:
    """Source and language of a document, as the sample is divided."""
    return document.metadata["source"], document.metadata["language"] or "und"


def _read_shares(file: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """Bytes wanted and there, by source and language."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {(row["source"], row["language"]): (row["sample_bytes"], row["bytes"]) for row in rows}


def _folder_names(sources: list[str]) -> dict[str, str]:
    """A folder for each source: its name without what a path cannot hold, and no two alike."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for source in sources:
        safe = "".join(char if char.isalnum() or char in "-_." else "-" for char in source).strip(".")
        # A path holds 255 bytes; file systems that do not tell upper from lower case must keep them apart, too.
        base = safe[:MAX_FOLDER_CHARACTERS] or "source"
        name, number = base, 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.casefold())
        names[source] = name
    return names


def _add(numbers: dict[str, int], **more: int) -> None:
    for name, number in more.items():
        numbers[name] = numbers.get(name, 0) + number

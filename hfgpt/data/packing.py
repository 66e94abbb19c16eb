"""Token shards on disk, and the order in which training reads them.

A prepared corpus is a folder:

    metadata.json       what is in it: splits, shards, tokens, bytes, sources, the end-of-text id
    tokenizer/          loads with AutoTokenizer
    train/00000.bin     token ids, uint16 (uint32 above 65,536 words), documents joined by the end-of-text token
    validation/00000.bin
"""

import json
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


METADATA_FILE = "metadata.json"
TOKENIZER_FOLDER = "tokenizer"
IGNORE_INDEX = -100


@dataclass
class Shard:
    """One file of token ids."""

    file: str
    tokens: int


@dataclass
class Split:
    """One split of a corpus; `bytes` are UTF-8 bytes of its documents, separators not counted."""

    documents: int
    tokens: int
    bytes: int
    shards: list[Shard]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class ShardWriter:
    """Writes token ids into files of at most `shard_tokens` tokens."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int):
        if shard_tokens < 1:
            raise ValueError(f"`shard_tokens` must be at least 1, got {shard_tokens}.")
        folder.mkdir(parents=True)
        self._folder, self._dtype, self._shard_tokens = folder, dtype, shard_tokens
        self._file: Any = None
        self._split = Split(documents=0, tokens=0, bytes=0, shards=[])

    def add(self, token_ids: list[int], text_bytes: int) -> None:
        """Append one document, its separator included."""
        ids = np.asarray(token_ids, dtype=self._dtype)
        self._split.documents += 1
        self._split.tokens += len(ids)
        self._split.bytes += text_bytes
        while len(ids):
            if self._file is None or self._split.shards[-1].tokens == self._shard_tokens:
                self._next_file()
            shard = self._split.shards[-1]
            part = ids[: self._shard_tokens - shard.tokens]
            self._file.write(part.tobytes())
            shard.tokens += len(part)
            ids = ids[len(part) :]

    def _next_file(self) -> None:
        if self._file is not None:
            self._file.close()
        name = f"{len(self._split.shards):05d}.bin"
        self._file = open(self._folder / name, "wb")  # noqa: SIM115 (closed in `close` or by the next file)
        self._split.shards.append(Shard(file=f"{self._folder.name}/{name}", tokens=0))

    def close(self) -> Split:
        """Close the last file and say what was written."""
        if self._file is not None:
            self._file.close()
        return self._split


def read_metadata(corpus: str | Path) -> dict[str, Any]:
    """The metadata of a prepared corpus.

    Raises:
        ValueError: The folder is not a prepared corpus.
    """
    path = Path(corpus) / METADATA_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{corpus} is not a prepared corpus (no {METADATA_FILE}): run `hfgpt prepare` first."
        ) from None


def write_metadata(corpus: Path, splits: dict[str, Split], **rest: Any) -> dict[str, Any]:
    """Write `metadata.json`; the last file of a corpus, so that its presence means the corpus is whole."""
    metadata = {**rest, "splits": {name: asdict(split) for name, split in splits.items()}}
    (corpus / METADATA_FILE).write_text(
        json.dumps(metadata, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    return metadata


class TokenStream:
    """The tokens of one split as one long array, memory-mapped.

    Raises:
        ValueError: A shard is missing or its size is not what the metadata says.
    """

    def __init__(self, corpus: str | Path, split: str):
        metadata = read_metadata(corpus)
        if split not in metadata["splits"]:
            raise ValueError(f"{corpus} has no split {split!r}; it has {', '.join(metadata['splits'])}.")
        self.info: dict[str, Any] = metadata["splits"][split]
        dtype = np.dtype(metadata["dtype"])
        self._dtype, self._paths = dtype, []
        for shard in self.info["shards"]:
            path = Path(corpus) / shard["file"]
            size = path.stat().st_size if path.exists() else -1
            if size != shard["tokens"] * dtype.itemsize:
                raise ValueError(
                    f"Shard {path} should have {shard['tokens'] * dtype.itemsize} bytes and has "
                    f"{'no file' if size < 0 else size}: run `hfgpt prepare --overwrite` again."
                )
            self._paths.append(path)
        self._map()
        self._ends = list(accumulate(shard["tokens"] for shard in self.info["shards"]))

    def _map(self) -> None:
        self._shards = [np.memmap(path, dtype=self._dtype, mode="r") for path in self._paths]

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is its data: a spawned worker maps the files itself.
        return {key: value for key, value in self.__dict__.items() if key != "_shards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` as int64, across shard borders."""
        parts = []
        shard = bisect_right(self._ends, start)
        while start < stop:
            begin = self._ends[shard] - len(self._shards[shard])
            part = self._shards[shard][start - begin : stop - begin]
            parts.append(part)
            start += len(part)
            shard += 1
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)


def permute(index: int, size: int, seed: int, epoch: int) -> int:
    """Where `index` goes in the permutation of `range(size)` drawn by (seed, epoch).

    A Feistel network on the smallest even number of bits that holds `size`, walked until it lands inside: constant
    time and memory, so the order of a run never has to be computed or stored as a whole.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            mixed = (right * 0x9E3779B97F4A7C15 + seed * 0xBF58476D1CE4E5B9 + epoch * 0x94D049BB133111EB + turn) & (
                2**64 - 1
            )
            mixed ^= mixed >> 30
            mixed = (mixed * 0xBF58476D1CE4E5B9) & (2**64 - 1)
            mixed ^= mixed >> 27
            mixed = (mixed * 0x94D049BB133111EB) & (2**64 - 1)
            mixed ^= mixed >> 31
            left, right = right, left ^ (mixed & mask)
        index = (left << half) | right
        if index < size:
            return index


class PackedDataset(Dataset):
    """Training sequences of full length: sample i of a run is a pure function of (seed, i).

    The corpus is cut into sequences of `sequence_length` tokens; each epoch takes every sequence once, in an order
    drawn by (seed, epoch). Documents are not masked from one another, as in the paper.

    Args:
        corpus: Folder of a prepared corpus.
        sequence_length: Tokens in a sequence.
        num_samples: Sequences in the run, any number of epochs.
        seed: Seed of the order.

    Raises:
        ValueError: The split holds less than one sequence.
    """

    def __init__(
        self, corpus: str | Path, sequence_length: int, num_samples: int, seed: int = 0, split: str = "train"
    ):
        self._stream = TokenStream(corpus, split)
        self.sequence_length, self.num_samples, self.seed = sequence_length, num_samples, seed
        self.sequences_per_epoch = len(self._stream) // sequence_length
        if self.sequences_per_epoch == 0:
            raise ValueError(
                f"Split {split!r} of {corpus} has {len(self._stream)} tokens, less than one sequence of "
                f"{sequence_length} (`sequence_length`): add text or shorten the sequence."
            )

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, each (sequence_length,) int64."""
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        epoch, position = divmod(index, self.sequences_per_epoch)
        start = self.sequence_length * permute(position, self.sequences_per_epoch, self.seed, epoch)
        input_ids = torch.from_numpy(self._stream.read(start, start + self.sequence_length))
        return {"input_ids": input_ids, "labels": input_ids.clone()}


class HeldOutDataset(Dataset):
    """The held-out split in order, every token once; the last sequence is padded and its padding has no loss.

    Args:
        corpus: Folder of a prepared corpus.
        sequence_length: Tokens in a sequence.
        pad_token_id: Any valid id; it has no influence on what comes before it.
        max_tokens: Read only so many tokens from the start.
    """

    def __init__(
        self,
        corpus: str | Path,
        sequence_length: int,
        pad_token_id: int,
        max_tokens: int | None = None,
        split: str = "validation",
    ):
        self._stream = TokenStream(corpus, split)
        self.sequence_length, self.pad_token_id = sequence_length, pad_token_id
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"`max_eval_tokens` must be at least 1, got {max_tokens}.")
        self.tokens = len(self._stream) if max_tokens is None else min(len(self._stream), max_tokens)
        total_bytes = self._stream.info["bytes"]
        self.bytes_per_token = total_bytes / len(self._stream) if len(self._stream) else float("nan")

    def __len__(self) -> int:
        return -(-self.tokens // self.sequence_length)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, each (sequence_length,) int64."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.sequence_length
        ids = torch.from_numpy(self._stream.read(start, min(start + self.sequence_length, self.tokens)))
        padding = (0, self.sequence_length - len(ids))
        return {
            "input_ids": torch.nn.functional.pad(ids, padding, value=self.pad_token_id),
            "labels": torch.nn.functional.pad(ids, padding, value=IGNORE_INDEX),
        }

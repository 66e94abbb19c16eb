"""Token shards on disk, and the order in which training reads them.

A prepared corpus is a folder:

    metadata.json       what is in it: splits, shards, tokens, bytes, sources and their weights, the end-of-text id
    tokenizer/          loads with AutoTokenizer
    train/SOURCE/00000.bin  token ids, uint16 (uint32 above 65,536 words), documents ended by the end-of-text token
    validation/SOURCE/00000.bin

`splits.train.sources` in the metadata names the shards of each source. Without it (`train/00000.bin`, as earlier
versions wrote) the split is one stream of all sources, which can be read but not weighted.
"""

import hashlib
import json
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .mixture import Mixture, permute


METADATA_FILE = "metadata.json"
TOKENIZER_FOLDER = "tokenizer"
IGNORE_INDEX = -100


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


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


class TokenStream:
    """The tokens of one split, or of one source in it, as one long array, memory-mapped.

    Args:
        corpus: Folder of a prepared corpus.
        split: Name of the split.
        source: Name of the source. Default: all of them, one after the other.
        random_access: Whether it is read here and there: the disk then reads what is asked for and nothing around it.

    Raises:
        ValueError: There is no such split or source; a shard is missing or its size is not what the metadata says.
    """

    def __init__(self, corpus: str | Path, split: str, source: str | None = None, random_access: bool = False):
        metadata = read_metadata(corpus)
        self.info: dict[str, Any] = _split_info(metadata, corpus, split)
        if source is not None:
            sources = _sources(self.info, corpus)
            if source not in sources:
                raise ValueError(f"{corpus} has no source {source!r}; it has {', '.join(sources)}.")
            self.info = sources[source]
        dtype = np.dtype(metadata["dtype"])
        self._dtype, self._random_access, self._paths = dtype, random_access, []
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
        self._shards = [_map_file(path, self._dtype, self._random_access) for path in self._paths]

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
        # One shard is the rule: then there is nothing to join first.
        return (parts[0] if len(parts) == 1 else np.concatenate(parts or [[]])).astype(np.int64)

    def sequences(self, sequence_length: int) -> Iterator[np.ndarray]:
        """Every whole sequence in order, as arrays (sequences, sequence_length) of the shards' own type.

        They are the memory maps themselves, without a copy, but for sequences that lie in two shards.
        """
        start, stop = 0, len(self) // sequence_length * sequence_length
        while start < stop:
            shard = bisect_right(self._ends, start)
            count = (min(self._ends[shard], stop) - start) // sequence_length
            if count:
                first = start - (self._ends[shard] - len(self._shards[shard]))
                array = self._shards[shard][first : first + count * sequence_length]
            else:
                count = 1
                array = self.read(start, start + sequence_length).astype(self._dtype)
            yield array.reshape(count, sequence_length)
            start += count * sequence_length


def _map_file(path: Path, dtype: np.dtype, random_access: bool) -> np.ndarray:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if random_access and hasattr(mmap, "MADV_RANDOM"):
        # By default a page that is not in memory brings megabytes of its neighbours with it, for a sequence of 4 KB.
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=dtype)


def _split_info(metadata: dict[str, Any], corpus: str | Path, split: str) -> dict[str, Any]:
    if split not in metadata["splits"]:
        raise ValueError(f"{corpus} has no split {split!r}; it has {', '.join(metadata['splits'])}.")
    return metadata["splits"][split]


def _sources(split_info: dict[str, Any], corpus: str | Path) -> dict[str, Any]:
    if "sources" not in split_info:
        raise ValueError(
            f"{corpus} was prepared with all its sources in one stream, which cannot be told apart or weighted: run "
            "`hfgpt prepare --overwrite` again."
        )
    return split_info["sources"]


class PackedDataset(Dataset):
    """Training sequences of full length: sample i of a run is a pure function of (seed, i).

    The corpus is cut into sequences of `sequence_length` tokens; each epoch takes every sequence once, in an order
    drawn by (seed, epoch). Documents are not masked from one another, as in the paper.

    Where the sources have weights, each is cut and drawn on its own, and `Mixture` says which one a sample is of;
    else the split is one stream, so that each source has its share of the tokens.

    Args:
        corpus: Folder of a prepared corpus.
        sequence_length: Tokens in a sequence.
        num_samples: Sequences in the run, any number of epochs.
        seed: Seed of the order.
        split: Name of the split.
        weights: Weight of every source. Default: the corpus' own, if it has any.

    Raises:
        ValueError: The split holds less than one sequence; weights that do not fit the sources.
    """

    def __init__(
        self,
        corpus: str | Path,
        sequence_length: int,
        num_samples: int,
        seed: int = 0,
        split: str = "train",
        weights: Mapping[str, float] | None = None,
    ):
        self.sequence_length, self.num_samples, self.seed = sequence_length, num_samples, seed
        metadata = read_metadata(corpus)
        weights = metadata.get("weights") if weights is None else weights
        names = [None] if weights is None else list(_sources(_split_info(metadata, corpus, split), corpus))
        self._streams: dict[Any, TokenStream] = {
            name: TokenStream(corpus, split, name, random_access=True) for name in names
        }
        sequences = {name: len(stream) // sequence_length for name, stream in self._streams.items()}
        self.sequences_per_epoch = sum(sequences.values())
        if self.sequences_per_epoch == 0:
            raise ValueError(
                f"Split {split!r} of {corpus} has {sum(map(len, self._streams.values()))} tokens, less than one "
                f"sequence of {sequence_length} (`sequence_length`): add text or shorten the sequence."
            )
        self.mixture = None if weights is None else Mixture(weights, sequences, seed)

    def __len__(self) -> int:
        return self.num_samples

    def locate(self, index: int) -> tuple[str | None, int, int]:
        """Sample `index` of the run: its source (None without weights), epoch, and place among the sequences there."""
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        if self.mixture is not None:
            return self.mixture.locate(index)
        epoch, position = divmod(index, self.sequences_per_epoch)
        return None, epoch, permute(position, self.sequences_per_epoch, self.seed, epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, each (sequence_length,) int64."""
        source, _, sequence = self.locate(index)
        start = self.sequence_length * sequence
        input_ids = torch.from_numpy(self._streams[source].read(start, start + self.sequence_length))
        return {"input_ids": input_ids, "labels": input_ids.clone()}


def as_dataset(
    corpus: str | Path,
    split: str = "train",
    sequence_length: int = 2048,
    num_samples: int | None = None,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
) -> Any:
    """A prepared corpus as a `datasets.Dataset` with the column `input_ids`, a row for each sequence.

    Rows have `sequence_length` ids in the shards' own type (uint16 or uint32), which `with_format("torch")` and
    transformers' collators make int64. Without `num_samples` the table is the memory maps, not a copy of them: every
    sequence in the corpus' order. With it, `select` puts the same rows in the order of a run, at 8 bytes a row.

    Use it to inspect, convert (`to_parquet`, `save_to_disk`) or push a corpus. To train in spawned loader workers read
    it back from `save_to_disk` first, or use `PackedDataset`: a table in memory is pickled with its data.

    Args:
        corpus: Folder of a prepared corpus.
        split: Name of the split.
        sequence_length: Tokens in a sequence.
        num_samples: Sequences of a run. Default: every sequence once, in the corpus' order.
        seed: Seed of the run.
        weights: As for `PackedDataset`.

    Raises:
        ValueError: As for `PackedDataset`.
    """
    import pyarrow as pa
    from datasets import Dataset as ArrowDataset
    from datasets import NamedSplit

    packed = PackedDataset(corpus, sequence_length, num_samples or 0, seed, split, weights)
    chunks, first_row, rows = [], {}, 0
    for source in packed._streams:
        first_row[source] = rows
        for array in TokenStream(corpus, split, source).sequences(sequence_length):
            native = array.astype(array.dtype.newbyteorder("="), copy=False)
            ids = pa.Array.from_buffers(pa.from_numpy_dtype(native.dtype), native.size, [None, pa.py_buffer(native)])
            chunks.append(pa.FixedSizeListArray.from_arrays(ids, sequence_length))
            rows += len(array)
    # Else datasets would read the whole corpus to name the table.
    metadata = Path(corpus).resolve() / METADATA_FILE
    name = f"{metadata} {metadata.stat().st_mtime_ns} {split} {sequence_length} {sorted(first_row, key=str)}"
    table = pa.table({"input_ids": pa.chunked_array(chunks)})
    dataset = ArrowDataset(table, split=NamedSplit(split), fingerprint=_fingerprint(name))
    if num_samples is None:
        return dataset
    places = (packed.locate(index) for index in range(num_samples))
    order = np.fromiter((first_row[source] + sequence for source, _, sequence in places), np.uint64, num_samples)
    weights_used = packed.mixture and packed.mixture.weights
    return dataset.select(order, new_fingerprint=_fingerprint(f"{name} {num_samples} {seed} {weights_used}"))


def _fingerprint(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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

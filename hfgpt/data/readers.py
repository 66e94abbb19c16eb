"""Rows out of text, JSONL, CSV and Parquet files, local, compressed, inside archives, or from a Hub dataset.

A path is anything fsspec opens: `data/*.jsonl.gz`, `s3://bucket/x.parquet`, or a file inside a zip,
`zip://inside/file.csv::local.zip`. A row that cannot be read is counted with its file and line; it is never a stack trace.
"""

import csv
import hashlib
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import fsspec


# What decompressors raise on a file that is cut short or is something else.
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}

# A CSV field may be a whole book; the default limit of the csv module is 128 KiB.
csv.field_size_limit(2**31 - 1)


@dataclass
class SourceConfig:
    """Where rows come from and which of them are taken. Give `path` or `dataset`."""

    name: str = field(default="", metadata={"help": "Name in reports. Default: the path or dataset."})
    path: str | list[str] | None = field(
        default=None, metadata={"help": "File, glob, fsspec address, or a list of them."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Name of a Hub dataset, streamed by `datasets`."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the Hub dataset."})
    format: Literal["text", "jsonl", "csv", "parquet"] | None = field(
        default=None, metadata={"help": "File format. Default: by the file's ending."}
    )
    sample_by: Literal["document", "paragraph", "line"] = field(
        default="document", metadata={"help": "What a row of a text file is; paragraphs end at an empty line."}
    )
    text_field: str = field(default="text", metadata={"help": "Field that holds the text."})
    where: dict[str, Any] | None = field(
        default=None, metadata={"help": "Keep rows whose fields have these values: {category: [fresh, rotten]}."}
    )
    group_by: str | None = field(
        default=None, metadata={"help": "Field that must not be in two parts, such as the film of a review."}
    )
    test_fraction: float = field(
        default=0.0, metadata={"help": "Share of groups (or of texts, without `group_by`) set apart for testing."}
    )
    part: Literal["all", "train", "test"] = field(
        default="all", metadata={"help": "Which side of `test_fraction` to read."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the division into train and test."})
    max_rows: int | None = field(default=None, metadata={"help": "Stop after so many rows."})

    def __post_init__(self) -> None:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(
                f"A source takes `path` or `dataset`, one of them; source {self.name or '(unnamed)'!r} has "
                f"{'neither' if self.path is None else 'both'}."
            )
        if not 0.0 <= self.test_fraction < 1.0:
            raise ValueError(f"`test_fraction` must be at least 0 and below 1, got {self.test_fraction}.")
        if self.part != "all" and self.test_fraction == 0.0:
            raise ValueError(f"`part: {self.part}` needs a `test_fraction` above 0.")
        if self.path == []:
            raise ValueError(f"`path` of source {self.name or '(unnamed)'!r} is an empty list.")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"`max_rows` must be at least 1, got {self.max_rows}.")
        if not self.name:
            self.name = self.dataset or PurePosixPath(self.paths[0].split("::")[0]).name

    @property
    def paths(self) -> list[str]:
        """`path` as a list; empty for a Hub dataset."""
        return self.path if isinstance(self.path, list) else [self.path] if self.path is not None else []


@dataclass
class RowErrors:
    """Malformed rows: counted, the first few kept, and an end to patience.

    Attributes:
        limit: More malformed rows than this raise; None never does.
        count: Malformed rows so far.
        examples: The first ones, each as "file:line: reason".
    """

    limit: int | None = None
    count: int = 0
    examples: list[str] = field(default_factory=list)
    max_examples: int = 20

    def add(self, file: str, line: int, reason: str) -> None:
        """Count one malformed row. Line numbers start at 1.

        Raises:
            ValueError: The limit is passed.
        """
        reason = reason.encode("utf-8", "backslashreplace").decode()
        self.count += 1
        if len(self.examples) < self.max_examples:
            self.examples.append(f"{file}:{line}: {reason}")
        if self.limit is not None and self.count > self.limit:
            shown = "\n  ".join(self.examples)
            raise ValueError(
                f"More than {self.limit} malformed rows (`max_bad_rows`). The first of them:\n  {shown}\n"
                "Mend the file, or raise `max_bad_rows` to go on without such rows."
            )


def read_rows(source: SourceConfig, errors: RowErrors) -> Iterator[dict[str, Any]]:
    """Rows of one source, as dicts, filtered by its `where` and `part`.

    A row without a usable `text_field` is malformed. Rows whose text is empty or white space are passed over.

    Raises:
        ValueError: No such file, an unknown format, or too many malformed rows.
    """
    wanted = {
        key: set(map(_as_text, value if isinstance(value, list) else [value]))
        for key, value in (source.where or {}).items()
    }
    taken = 0
    for file, line, row in _numbered_rows(source, errors):
        reason = _why_malformed(row, source, wanted)
        if reason:
            errors.add(file, line, reason)
            continue
        if (
            any(_as_text(row[key]) not in values for key, values in wanted.items())
            or not row[source.text_field].strip()
        ):
            continue
        if source.part != "all":
            held_out = in_test_part(
                # Without its outer white space: what counts as one document elsewhere is in one part here.
                str(row[source.group_by]) if source.group_by else row[source.text_field].strip(),
                source.test_fraction,
                source.split_seed,
            )
            if held_out != (source.part == "test"):
                continue
        yield row
        taken += 1
        if source.max_rows is not None and taken >= source.max_rows:
            return


def _as_text(value: Any) -> str:
    # CSV has text alone: `true` in a recipe is the "true" or "True" in the file.
    return str(value).lower() if isinstance(value, bool) or value in ("True", "False") else str(value)


def local_files(source: SourceConfig) -> list[tuple[str, int, str]]:
    """Name, size, and a hash of beginning and end of the local files a source reads; remote ones are not looked at."""
    files = []
    for path in source.paths:
        for file in _expand(path):
            local = Path(file.split("::")[-1].removeprefix("file://"))
            if local.is_file():
                size = local.stat().st_size
                with open(local, "rb") as raw:
                    ends = raw.read(2**20)
                    raw.seek(max(size - 2**20, 0))
                    ends += raw.read()
                files.append((file, size, hashlib.blake2b(ends, digest_size=16).hexdigest()))
    return files


def in_test_part(key: str, fraction: float, seed: int) -> bool:
    """Whether the group `key` is set apart: a pure function of its arguments, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _why_malformed(row: dict[str, Any], source: SourceConfig, wanted: dict[str, set[str]]) -> str | None:
    for key in (source.text_field, source.group_by, *wanted):
        if key is not None and key not in row:
            return f"no field `{key}`; the fields are {', '.join(map(str, row)) or '(none)'}"
    text = row[source.text_field]
    if not isinstance(text, str):
        return f"field `{source.text_field}` must be text, got {type(text).__name__}"
    for value in (text, str(row[source.group_by]) if source.group_by else ""):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "not valid UTF-8"
    return None


def _numbered_rows(source: SourceConfig, errors: RowErrors) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if source.dataset is not None:
        yield from _hub_rows(source)
        return
    for path in source.paths:
        for file in _expand(path):
            kind = source.format or _format_of(file)
            if kind == "parquet":
                yield from _parquet_rows(file, errors)
            else:
                # Undecodable bytes become lone surrogates, which `_why_malformed` finds and reports by line.
                with (
                    _open(file) as raw,
                    io.TextIOWrapper(
                        raw, encoding="utf-8-sig", errors="surrogateescape", newline="" if kind == "csv" else None
                    ) as lines,
                ):
                    if kind == "text":
                        yield from _text_rows(file, lines, source)
                    elif kind == "jsonl":
                        yield from _jsonl_rows(file, lines, errors)
                    else:
                        yield from _csv_rows(file, lines, errors, "\t" if _ending(file) == ".tsv" else ",")


def _expand(path: str) -> list[str]:
    """The files a path or glob names."""
    # `zip://inner::outer`: fsspec's own expansion loses the outer archive, so only plain paths are globbed.
    if "::" in path or not any(char in path for char in "*?["):
        return [path]
    filesystem, pattern = fsspec.url_to_fs(path)
    if filesystem.isfile(pattern):
        return [path]
    found = sorted(name for name, info in filesystem.glob(pattern, detail=True).items() if info["type"] != "directory")
    if not found:
        raise ValueError(f"No file matches `path: {path}`.")
    return [str(filesystem.unstrip_protocol(name)) if "://" in path else str(name) for name in found]


def _ending(file: str) -> str:
    suffixes = PurePosixPath(file.split("::")[0]).suffixes
    while suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _format_of(file: str) -> str:
    ending = _ending(file)
    if ending not in FORMATS:
        raise ValueError(
            f"Cannot tell the format of {file} by its ending {ending!r}: set `format` to text, jsonl, csv or parquet."
        )
    return FORMATS[ending]


@contextmanager
def _open(file: str) -> Iterator[Any]:
    compression = COMPRESSIONS.get(PurePosixPath(file.split("::")[0]).suffix)
    with ExitStack() as stack:
        try:
            if compression == "zstd":
                import pyarrow

                # fsspec's own zstd reader takes a file that is cut short, or has several frames, for one that ends there.
                raw = stack.enter_context(fsspec.open(file, mode="rb"))
                opened = stack.enter_context(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"))
            else:
                opened = stack.enter_context(fsspec.open(file, mode="rb", compression=compression))
        except (FileNotFoundError, KeyError, IsADirectoryError, NotADirectoryError):
            raise ValueError(f"No such file: `path: {file}`.") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"Cannot read `path: {file}`: {error}") from None
        try:
            yield opened
        except DAMAGED as error:
            raise ValueError(f"`path: {file}` is damaged: {error}") from None


def _text_rows(file: str, lines: Iterable[str], source: SourceConfig) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if source.sample_by == "line":
        for number, line in enumerate(lines, start=1):
            yield file, number, {source.text_field: line.rstrip("\n")}
        return
    block: list[str] = []
    start = 1
    for number, line in enumerate(lines, start=1):
        if source.sample_by == "paragraph" and not line.strip():
            if block:
                yield file, start, {source.text_field: "".join(block).rstrip("\n")}
            block, start = [], number + 1
        else:
            block.append(line)
    if block:
        yield file, start, {source.text_field: "".join(block).rstrip("\n")}


def _jsonl_rows(file: str, lines: Iterable[str], errors: RowErrors) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            raise ValueError(f"{file} is one JSON array: write one JSON object a line (JSONL) instead.")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            errors.add(file, number, f"not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield file, number, row
        else:
            errors.add(file, number, f"a row must be a JSON object, got {type(row).__name__}")


def _csv_rows(
    file: str, lines: Iterable[str], errors: RowErrors, delimiter: str
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            errors.add(file, start, f"not CSV: {error}")
            start = reader.line_num + 1
            continue
        if header is None:
            header = cells or None
        elif cells and len(cells) != len(header):
            errors.add(file, start, f"{len(cells)} cells where the header has {len(header)}")
        elif cells:
            yield file, start, dict(zip(header, cells))
        start = reader.line_num + 1


def _parquet_rows(file: str, errors: RowErrors) -> Iterator[tuple[str, int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _open(file) as raw:
            number = 0
            for batch in pyarrow.parquet.ParquetFile(raw).iter_batches(batch_size=1024):
                try:
                    rows: list[dict[str, Any] | None] = batch.to_pylist()
                except UnicodeDecodeError:
                    rows = [_parquet_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
                for row in rows:
                    number += 1
                    if row is None:
                        errors.add(file, number, "not valid UTF-8")
                    else:
                        yield file, number, row
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a readable Parquet file: {error}") from None


def _parquet_row(batch: Any) -> dict[str, Any] | None:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return None


def _hub_rows(source: SourceConfig) -> Iterator[tuple[str, int, dict[str, Any]]]:
    import datasets

    try:
        rows = datasets.load_dataset(source.dataset, source.dataset_config, split=source.dataset_split, streaming=True)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"Cannot load `dataset: {source.dataset}` ({error}). Check the name, or give a local file as `path`."
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{source.dataset}[{source.dataset_split}]", number, row

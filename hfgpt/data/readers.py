"""Rows out of text, JSONL, CSV, Parquet and HTML files, WARC archives, Wikipedia dumps, gettext catalogs, or the Hub.

A path is anything fsspec opens: `data/*.jsonl.gz`, `s3://bucket/x.parquet`, or files inside a zip,
`zip://inside/*.csv::local.zip`. A row that cannot be read is counted with its file and line; it is never a stack trace.
What is left out on purpose is counted too, by reason.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import struct
import urllib.parse
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from xml.etree import ElementTree

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
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "wet",
    ".xml": "wikipedia",
    ".mo": "gettext",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}

# Field of a row that says what its text is written in, "html" or "wikitext"; absent or None where it is plain.
MARKUP = "_markup"
# A larger page is no prose, and to parse it takes a GiB and half a minute. Common Crawl keeps 5 MiB of a page.
MAX_PAGE_BYTES = 6_000_000

# Charsets as browsers take their names: what pages declare is as a rule a subset of what they use.
BROWSER_CHARSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "euc_kr": "cp949",
    "windows-949": "cp949",
    "x-windows-949": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "tis-620": "cp874",
    "windows-874": "cp874",
    "big5": "big5hkscs",
}
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
DECLARED_CHARSET = re.compile(
    rb"""<(?:meta\s[^>]*?\bcharset|\?xml\s[^>]*?\bencoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
HTML_TYPES = ("text/html", "application/xhtml+xml")
LOOKS_LIKE_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
# Bytes at the beginning of a page in which its charset, or that it is HTML, is looked for.
HEAD_BYTES = 8192
SAMPLE_BYTES = 65_536

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
    format: Literal["text", "jsonl", "csv", "parquet", "html", "warc", "wet", "wikipedia", "gettext"] | None = field(
        default=None,
        metadata={
            "help": "File format. Default: by the file's ending. html: a file is a page; wikipedia: an XML dump; gettext: "
            "a message catalog (.mo), with the fields source, target, context, and text, both on a line each."
        },
    )
    extract: Literal["auto", "html", "wikitext", "none"] = field(
        default="auto",
        metadata={
            "help": "What the text is taken out of. auto: html for HTML files and the pages of WARC files, wikitext for "
            "Wikipedia dumps, else none. Rows of other formats that hold HTML need html."
        },
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
            # Without the query and fragment of an address: these may be a key to it.
            inside = (
                re.split(r"[?#]", self.paths[0].split("::")[0])[0] if self.paths and "://" in self.paths[0] else None
            )
            self.name = self.dataset or PurePosixPath(inside or self.paths[0].split("::")[0]).name

    @property
    def paths(self) -> list[str]:
        """`path` as a list; empty for a Hub dataset."""
        return self.path if isinstance(self.path, list) else [self.path] if self.path is not None else []

    def markup_of(self, row: dict[str, Any]) -> str | None:
        """What the text of one of this source's rows is to be taken out of: "html", "wikitext", or None."""
        if self.extract == "auto":
            return row.get(MARKUP)
        return None if self.extract == "none" else self.extract


@dataclass
class RowErrors:
    """Malformed rows: counted, the first few kept, and an end to patience. Rows left out on purpose: counted.

    Attributes:
        limit: More malformed rows than this raise; None never does.
        count: Malformed rows so far.
        examples: The first ones, each as "file:line: reason".
        passed_over: How many rows were well-formed and not wanted, by reason.
    """

    limit: int | None = None
    count: int = 0
    examples: list[str] = field(default_factory=list)
    max_examples: int = 20
    passed_over: dict[str, int] = field(default_factory=dict)

    def pass_over(self, reason: str) -> None:
        """Count one row that is left out and is no error."""
        self.passed_over[reason] = self.passed_over.get(reason, 0) + 1

    def add(self, file: str, line: int, reason: str) -> None:
        """Count one malformed row. Line numbers start at 1.

        Raises:
            ValueError: The limit is passed.
        """
        reason = reason.encode("utf-8", "backslashreplace").decode()
        self.count += 1
        if len(self.examples) < self.max_examples:
            self.examples.append(f"{file}:{line}: {reason}")
        self.check()

    def check(self) -> None:
        """Raise if there are more malformed rows than allowed.

        Raises:
            ValueError: There are.
        """
        if self.limit is not None and self.count > self.limit:
            shown = "\n  ".join(self.examples)
            raise ValueError(
                f"More than {self.limit} malformed rows (`max_bad_rows`). The first of them:\n  {shown}\n"
                "Mend the file, or raise `max_bad_rows` to go on without such rows."
            )


def read_rows(source: SourceConfig, errors: RowErrors) -> Iterator[dict[str, Any]]:
    """Rows of one source, as dicts, filtered by its `where` and `part`.

    A row without a usable `text_field` is malformed. Rows whose text is empty or white space are passed over, as are
    those another `where` or `part` takes, and what is no page or article: `errors.passed_over` has their numbers.

    Rows of HTML, WARC and Wikipedia files have the text, still in its markup, in `text_field`; `url` (None where the
    file does not say); `title` and `date` where there are any; and under `MARKUP` "html", "wikitext" or None.

    Raises:
        ValueError: No such file, an unknown format, a damaged file, or too many malformed rows.
    """
    wanted = WantedRows(source)
    taken = 0
    for file, line, row in numbered_rows(source, errors):
        reason = _why_malformed(row, source)
        if reason:
            errors.add(file, line, reason)
            continue
        reason = wanted.why_not(row) if row[source.text_field].strip() else "empty"
        if reason:
            errors.pass_over(reason)
            continue
        yield row
        taken += 1
        if source.max_rows is not None and taken >= source.max_rows:
            return


class WantedRows:
    """Which rows the `where` and `part` of a source take."""

    def __init__(self, source: SourceConfig):
        self.source = source
        self.values = {
            key: set(map(as_text, value if isinstance(value, list) else [value]))
            for key, value in (source.where or {}).items()
        }

    def why_not(self, row: dict[str, Any]) -> str | None:
        """Why a row, which has the fields that are looked at, is left out; None where it is taken."""
        if any(as_text(row[key]) not in values for key, values in self.values.items()):
            return "`where`"
        source = self.source
        if source.part == "all":
            return None
        # Without its outer white space: what counts as one document elsewhere is in one part here.
        key = str(row[source.group_by]) if source.group_by else str(row[source.text_field]).strip()
        held_out = in_test_part(key, source.test_fraction, source.split_seed)
        return None if held_out == (source.part == "test") else "other part"


def as_text(value: Any) -> str:
    """A value as files of any format have it: CSV has text alone, and Parquet often whole numbers as floats.

    `true` in a recipe is the "true" or "True" in a CSV file, and 1 is 1.0.
    """
    if isinstance(value, bool) or value in ("True", "False"):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def local_files(source: SourceConfig) -> list[tuple[str, int, str]]:
    """Name, size, and a hash of beginning and end of the local files a source reads; remote ones are not looked at.

    Raises:
        ValueError: A file cannot be read.
    """
    files = []
    for path in source.paths:
        for file in _expand(path):
            local = Path(file.split("::")[-1].removeprefix("file://")).expanduser()
            if local.is_file():
                try:
                    files.append((file, *_size_and_hash(local)))
                except OSError as error:
                    raise ValueError(f"Cannot read `path: {file}`: {error}") from None
    return files


def _size_and_hash(file: Path) -> tuple[int, str]:
    size = file.stat().st_size
    with open(file, "rb") as raw:
        ends = raw.read(2**20)
        raw.seek(max(size - 2**20, 0))
        ends += raw.read()
    return size, hashlib.blake2b(ends, digest_size=16).hexdigest()


def in_test_part(key: str, fraction: float, seed: int) -> bool:
    """Whether the group `key` is set apart: a pure function of its arguments, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _why_malformed(row: dict[str, Any], source: SourceConfig) -> str | None:
    for key in (source.text_field, source.group_by, *(source.where or ())):
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


def numbered_rows(source: SourceConfig, errors: RowErrors) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """All rows of a source that can be read, whatever is in them, with their file and line.

    Raises:
        ValueError: As `read_rows`.
    """
    if source.dataset is not None:
        yield from _hub_rows(source)
        return
    for path in source.paths:
        for file in _expand(path):
            kind = source.format or _format_of(file)
            if kind == "parquet":
                yield from _parquet_rows(file, errors)
            elif kind == "html":
                yield from _html_rows(file, source, errors)
            elif kind in ("warc", "wet"):
                yield from _warc_rows(file, source, errors)
            elif kind == "wikipedia":
                yield from _wikipedia_rows(file, source, errors)
            elif kind == "gettext":
                yield from _gettext_rows(file, errors)
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


def split_files(source: SourceConfig, target_bytes: int) -> list[list[str]]:
    """The files of a source, in order, in groups of consecutive files of about `target_bytes` on disk: a task each.

    `dataclasses.replace(source, path=group)` reads a group. No file is split, and one whose size is not to be had
    cheaply is a group by itself. A source with `max_rows` is one group, for its rows are counted across files; a Hub
    dataset is one group of no files.

    Raises:
        ValueError: No such file.
    """
    if source.dataset is not None:
        return [[]]
    if source.max_rows is not None:
        return [[file for path in source.paths for file, _ in _sized(path)]]
    groups: list[list[str]] = []
    room = 0
    for path in source.paths:
        for file, size in _sized(path):
            if not groups or size is None or size > room:
                groups.append([])
                room = target_bytes
            groups[-1].append(file)
            room = room - size if size is not None else -1
    return groups


def _expand(path: str) -> list[str]:
    """The files a path or glob names."""
    matches = _matches(path)
    return [path] if matches is None else [file for file, _ in matches]


def _sized(path: str) -> list[tuple[str, int | None]]:
    """The files a path or glob names, and their bytes; None where each would take a request to a web server."""
    matches = _matches(path)
    if matches is not None:
        return matches
    if path.split("::")[-1].startswith(("http://", "https://")):
        return [(path, None)]
    try:
        filesystem, name = _filesystem(path)
        info = filesystem.info(name)
    except (FileNotFoundError, KeyError, NotADirectoryError):
        raise ValueError(f"No such file: `path: {path}`.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"Cannot read `path: {path}`: {error}") from None
    if info["type"] == "directory":
        raise ValueError(f"No such file: `path: {path}` is a folder. For the files in it add /*.")
    _refuse_pipe(path, info)
    return [(path, info.get("size"))]


def _matches(path: str) -> list[tuple[str, int | None]] | None:
    """The files a glob names, in order, and their bytes; None where the path names one file."""
    # `zip://inner::outer`: fsspec's own expansion loses the outer archive, which is put back below.
    inner, *outer = path.split("::")
    if not any(char in inner for char in "*?["):
        return None
    filesystem, pattern = _filesystem(path)
    if filesystem.isfile(pattern):
        return None
    found = filesystem.glob(pattern, detail=True)
    files = sorted(name for name, info in found.items() if info["type"] != "directory")
    if not files:
        raise ValueError(f"No file matches `path: {path}`.")
    for name in files:
        _refuse_pipe(name, found[name])
    return [
        (
            "::".join([str(filesystem.unstrip_protocol(name)) if "://" in inner else str(name), *outer]),
            found[name].get("size"),
        )
        for name in files
    ]


def _filesystem(path: str) -> tuple[Any, str]:
    try:
        return fsspec.url_to_fs(path)
    except FileNotFoundError:
        # An archive is opened here.
        raise ValueError(f"No such file: `path: {path}`.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"Cannot read `path: {path}`: {error}") from None
    except (ImportError, ValueError) as error:
        # A protocol that nobody knows, or whose package is not installed.
        raise ValueError(f"Cannot read `path: {path}`: {error}") from None


def _refuse_pipe(path: str, info: dict[str, Any]) -> None:
    if info["type"] == "other":
        if not Path(path).exists():
            raise ValueError(f"No such file: `path: {path}` is a link to nothing.")
        raise ValueError(
            f"`path: {path}` is a pipe or a device, which can be read but once: write it to a file first."
        )


def _ending(file: str) -> str:
    # A part of a Wikipedia dump is named pages-articles1.xml-p1p41242.bz2, after its first and last page.
    suffixes = [re.sub(r"-p\d+p\d+$", "", suffix) for suffix in PurePosixPath(file.split("::")[0]).suffixes]
    while suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _format_of(file: str) -> str:
    ending = _ending(file)
    if ending not in FORMATS:
        raise ValueError(
            f"Cannot tell the format of {file} by its ending {ending!r}: set `format` to text, jsonl, csv or parquet, or to "
            "html, warc, wet, wikipedia or gettext."
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
        except (FileNotFoundError, KeyError, IsADirectoryError, NotADirectoryError) as error:
            # A server that does not answer is a missing file to fsspec.
            why = f" ({error.__cause__})" if isinstance(error.__cause__, OSError) else ""
            raise ValueError(f"No such file: `path: {file}`{why}.") from None
        except (OSError, ImportError, zipfile.BadZipFile) as error:
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
    first = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            raise ValueError(f"{file} is one JSON array: write one JSON object a line (JSONL) instead.")
        first = False
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
    """Rows by a header. After a bad quote, which swallows lines up to the next quote, reading goes on in the next line."""
    lines, again, taken = iter(lines), deque[str](), list[str]()

    def take() -> Iterator[str]:
        while True:
            line = again.popleft() if again else next(lines, None)
            if line is None:
                return
            taken.append(line)
            yield line

    reader = csv.reader(take(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    while True:
        reason = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"not CSV: {error}"
        if reason is None and delimiter == "\t" and header is not None and _are_rows(taken, len(header)):
            reason = f"a quote that is text, or closes in line {start + len(taken) - 1}, where each line is a row"
        if reason is not None:
            errors.add(file, start, reason)
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
            # The old one may have seen the end.
            reader, cells = csv.reader(take(), delimiter=delimiter, strict=True), []
        if header is None:
            header = cells or None
        elif cells and len(cells) != len(header):
            errors.add(file, start, f"{len(cells)} cells where the header has {len(header)}")
        elif cells:
            yield file, start, dict(zip(header, cells))
        start += len(taken)
        taken.clear()


def _are_rows(lines: list[str], columns: int) -> bool:
    """Whether what was read as one row is several, of a TSV file whose quotes are text: two of them met."""
    return len(lines) > 1 and columns > 1 and all(line.count("\t") == columns - 1 for line in lines)


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


def _html_rows(file: str, source: SourceConfig, errors: RowErrors) -> Iterator[tuple[str, int, dict[str, Any]]]:
    with _open(file) as raw:
        data = raw.read(MAX_PAGE_BYTES + 1)
    if len(data) > MAX_PAGE_BYTES:
        errors.pass_over("too large")
        return
    html, charset = decode_page(data)
    if html is None:
        errors.add(file, 1, f"not valid {charset}")
        return
    yield file, 1, {source.text_field: html, "url": None, MARKUP: "html"}


def decode_page(data: bytes, declared: str | None = None, cut: bool = False) -> tuple[str | None, str]:
    """The text of a page, and the charset it is in; None, and the charset it should be in, where it is in none.

    In this order: a byte order mark, the HTTP header's charset, the page's own, UTF-8, and a guess from a sample. Each
    must decode every byte. One-byte charsets do that for anything, and many servers declare ISO-8859-1 for all they
    have, so they come after UTF-8.

    Args:
        data: The bytes of the page.
        declared: The charset of the HTTP header, if it has one.
        cut: The page is cut short, maybe inside a character: what is left of that is dropped.
    """
    for mark, charset in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return _decode(data[len(mark) :], charset, cut), charset
    found = DECLARED_CHARSET.search(data[:HEAD_BYTES])
    in_page = _browser_charset(found[1].decode("ascii", "replace")) if found else None
    if in_page is not None and in_page.startswith("utf-16"):
        # It could not have been read in ASCII, were it so.
        in_page = None
    charsets = [charset for charset in (_browser_charset(declared), in_page, "utf-8") if charset is not None]
    for charset in sorted(charsets, key=_is_one_byte):
        text = _decode(data, charset, cut)
        if text is not None:
            return text, charset
    import charset_normalizer

    # Up to a tag, which is no part of a character in any charset.
    sample = data if len(data) <= SAMPLE_BYTES else data[:SAMPLE_BYTES].rpartition(b"<")[0]
    guess = charset_normalizer.from_bytes(sample).best()
    text = _decode(data, _browser_charset(guess.encoding) or "utf-8", cut) if guess is not None else None
    return text, charsets[0]


def _browser_charset(name: str | None) -> str | None:
    """Python's name for the charset a page declares; None for what is no charset."""
    name = (name or "").strip().lower()
    try:
        known = codecs.lookup(BROWSER_CHARSETS.get(name, name))
        "".encode(known.name)
    except (LookupError, ValueError):
        return None
    return BROWSER_CHARSETS.get(known.name, known.name)


def _is_one_byte(charset: str) -> bool:
    # In the stateful ones, and in UTF-8, no byte above 127 starts a character that 256 bytes in a row would go on with.
    stateful = charset.startswith(("utf", "iso2022", "hz"))
    return not stateful and len(bytes(range(256)).decode(charset, "replace")) == 256


def _decode(data: bytes, charset: str, cut: bool) -> str | None:
    try:
        return codecs.getincrementaldecoder(charset)().decode(data, final=not cut)
    except (UnicodeError, LookupError):
        return None


class _AsItComes:
    """Bytes as the decompressor has them: a read does not fail for damage that lies behind bytes still to be had."""

    def __init__(self, raw: Any):
        self._read = getattr(raw, "read1", raw.read)

    def read(self, size: int) -> bytes:
        try:
            return self._read(size)
        except EOFError as error:
            # warcio would take an EOFError for the end of a whole archive.
            raise OSError(str(error)) from None


def _warc_rows(file: str, source: SourceConfig, errors: RowErrors) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The pages of a WARC archive: HTML of `response` records, plain text of `conversion` records (WET files).

    An archive that is cut short, as crawls often are, gives what comes before the damage and counts as one malformed row.
    warcio is used and not datatrove's WarcReader, which needs the system library libmagic, drops what it cannot decode
    without a word, and does not count bad records.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    number = 1
    row = damage = None
    with _open(file) as raw:
        try:
            # HTTP headers are parsed one by one in _warc_row: in here a bad one ends the iteration.
            for record in ArchiveIterator(_AsItComes(raw), no_record_parse=True):
                # A page is given when the record after it is there, for only then is its checksum known to be right.
                if row is not None:
                    yield file, number - 1, row
                row = None
                page = _warc_row(file, number, record, source, errors)
                _read_to_end(record)
                row = page
                number += 1
        except (*DAMAGED, ArchiveLoadFailed) as error:
            # Decompressors' errors have no errno; a disk or network that fails is no property of the archive.
            if isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "errno", None) is not None:
                raise
            damage = error
        # Cut after the first byte of a gzip member, which is half its signature.
        cut = isinstance(damage, gzip.BadGzipFile) and str(damage).endswith(r"(b'\x1f')")
        if row is not None and isinstance(damage, (gzip.BadGzipFile, zlib.error)) and not cut:
            # The page before the damage may be what is damaged. An archive that merely ends too soon has it whole.
            number -= 1
        elif row is not None:
            yield file, number - 1, row
        if damage is not None:
            errors.add(file, number, f"the archive is damaged, its rest is not read: {damage}")


def _read_to_end(record: Any) -> None:
    while record.length is not None and record.raw_stream.read(SAMPLE_BYTES):
        pass
    if record.length is None or record.raw_stream.limit > 0:
        raise EOFError("a record ends before its Content-Length, or has none")


def _warc_row(file: str, number: int, record: Any, source: SourceConfig, errors: RowErrors) -> dict[str, Any] | None:
    headers = record.rec_headers
    row = {"url": headers.get_header("WARC-Target-URI"), "date": headers.get_header("WARC-Date")}
    cut = headers.get_header("WARC-Truncated") is not None
    if record.rec_type == "conversion":
        declared = headers.get_header("Content-Type") or "text/plain"
        if _media_type(declared) != "text/plain":
            errors.pass_over("not plain text")
            return None
        row[MARKUP] = None
    elif record.rec_type == "response":
        record.http_headers = _http_headers(record, row["url"])
        if record.http_headers is None:
            errors.pass_over("not HTTP")
            return None
        if record.http_headers.get_statuscode() != "200":
            errors.pass_over("HTTP status")
            return None
        declared = record.http_headers.get_header("Content-Type") or ""
        media_type = _media_type(headers.get_header("WARC-Identified-Payload-Type") or declared)
        if media_type and media_type not in HTML_TYPES:
            errors.pass_over("not HTML")
            return None
        row[MARKUP] = "html"
    else:
        errors.pass_over("not a page")
        return None

    try:
        content = record.content_stream()
    except AttributeError:  # warcio cannot use the decompressor of newer brotli packages
        content = record.raw_stream
    data = content.read(MAX_PAGE_BYTES + 1)
    if len(data) > MAX_PAGE_BYTES:
        errors.pass_over("too large")
        return None
    # Before its bytes are found to be in no charset: a record that is cut off is damage, not a malformed page.
    _read_to_end(record)
    found = re.search(r"""charset\s*=\s*["']?\s*([\w.:-]+)""", declared, re.IGNORECASE)
    if row[MARKUP] is None:
        charset = (_browser_charset(found[1]) if found else None) or "utf-8"
        text = _decode(data, charset, cut)
    else:
        if not LOOKS_LIKE_HTML.search(data[:HEAD_BYTES]):
            encoding = (record.http_headers.get_header("Content-Encoding") or "identity").lower()
            if encoding not in ("identity", "gzip", "deflate"):
                errors.add(file, number, f"content encoding {encoding!r} cannot be read")
                return None
            if not media_type:
                errors.pass_over("not HTML")
                return None
        text, charset = decode_page(data, found[1] if found else None, cut)
    if text is None:
        errors.add(file, number, f"not valid {charset}")
        return None
    return {source.text_field: text, **row}


def _media_type(content_type: str) -> str:
    return content_type.split(";")[0].strip().lower()


def _http_headers(record: Any, url: str | None) -> Any:
    """The HTTP headers at the beginning of a response, read off its stream; None where it is none, as of a DNS look-up."""
    from warcio.statusandheaders import StatusAndHeadersParser

    if not (url or "").lower().startswith(("http:", "https:")):
        return None
    try:
        headers = StatusAndHeadersParser([], verify=False).parse(record.raw_stream)
    except EOFError:
        return None
    return headers if headers.protocol.upper().startswith("HTTP/") else None


def _wikipedia_rows(file: str, source: SourceConfig, errors: RowErrors) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The articles of a MediaWiki XML dump, in memory one at a time."""
    with _open(file) as raw:
        try:
            number = 0
            base = ""
            open_elements: list[ElementTree.Element] = []
            for event, element in ElementTree.iterparse(raw, events=("start", "end")):
                if event == "start":
                    open_elements.append(element)
                    continue
                open_elements.pop()
                name = element.tag.rpartition("}")[2]
                if name == "base":
                    base = (element.text or "").rpartition("/")[0]
                elif name == "page":
                    number += 1
                    row = _wikipedia_row(element, base, source, errors)
                    # The tree would otherwise grow to the whole dump.
                    for parent in open_elements:
                        parent.clear()
                    if row is not None:
                        yield file, number, row
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise ValueError(f"`path: {file}` is damaged, or no MediaWiki XML dump: {error}") from None
    if number == 0:
        raise ValueError(f"`path: {file}` is no MediaWiki XML dump: there is no <page> in it.")


def _wikipedia_row(
    page: ElementTree.Element, base: str, source: SourceConfig, errors: RowErrors
) -> dict[str, Any] | None:
    if page.findtext("{*}ns") != "0":
        errors.pass_over("not an article")
        return None
    if page.find("{*}redirect") is not None:
        errors.pass_over("redirect")
        return None
    revision = page.findall("{*}revision")[-1:]
    if not revision or revision[0].findtext("{*}model", "wikitext") != "wikitext":
        errors.pass_over("not an article")
        return None
    title = page.findtext("{*}title", "")
    return {
        source.text_field: revision[0].findtext("{*}text", ""),
        "url": f"{base}/{urllib.parse.quote(title.replace(' ', '_'))}" if base else None,
        "title": title,
        "date": revision[0].findtext("{*}timestamp"),
        MARKUP: "wikitext",
    }


def _gettext_rows(file: str, errors: RowErrors) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The translated messages of a compiled catalog, by the number of the entry: `source`, `target`, `context`, and both
    sides as `text`, which a corpus reads.

    Each plural form is a row: the first of the singular, others of the plural. A language with one form has it for both.
    The standard library's reader is not used: it drops the plural's source and fails as a whole at one bad entry.
    """
    with _open(file) as raw:
        data = raw.read()
    try:
        pairs = list(_gettext_pairs(data))
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"`path: {file}` is damaged, or no compiled gettext catalog (.mo): {error}") from None
    charset = "utf-8"
    for number, (message, translation) in enumerate(pairs, start=1):
        if not message:
            declared = re.search(rb"charset=([\w.:-]+)", translation)
            charset = (_browser_charset(declared[1].decode("ascii")) if declared else None) or charset
            errors.pass_over("header")
            continue
        try:
            text, forms = message.decode(charset), translation.decode(charset).split("\0")
        except UnicodeDecodeError:
            errors.add(file, number, f"not valid {charset}")
            continue
        context, _, text = text.rpartition("\4")
        singular, _, plural = text.partition("\0")
        sources = [singular, *[plural] * max(len(forms) - 1, 1)] if plural else [singular]
        targets = forms * 2 if plural and len(forms) == 1 else forms
        for one, target in zip(sources, targets):
            if target.strip():
                row = {"source": one, "target": target, "context": context, "text": f"{one}\n{target}"}
                yield file, number, row
            else:
                errors.pass_over("not translated")


def _gettext_pairs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Messages and translations as bytes. Source: "The Format of GNU MO Files" in gettext's manual."""
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None:
        raise ValueError("it does not begin with the format's signature")
    _, count, messages, translations = struct.unpack_from(f"{order}4I", data, 4)
    for index in range(count):
        pair = []
        for table in (messages, translations):
            length, start = struct.unpack_from(f"{order}2I", data, table + 8 * index)
            if start + length > len(data):
                raise ValueError(f"entry {index + 1} lies behind its end")
            pair.append(data[start : start + length])
        yield pair[0], pair[1]


def _hub_rows(source: SourceConfig) -> Iterator[tuple[str, int, dict[str, Any]]]:
    import datasets

    try:
        rows = iter(
            datasets.load_dataset(source.dataset, source.dataset_config, split=source.dataset_split, streaming=True)
        )
    except Exception as error:
        raise ValueError(
            f"Cannot load `dataset: {source.dataset}` ({error}). Check the name, or give a local file as `path`."
        ) from error
    number = 0
    while True:
        # Of whatever kind: the Hub's client, its transport and the readers of its files each have their own errors.
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise ValueError(
                f"Reading `dataset: {source.dataset}` failed after {number} rows ({error}). Try again, or download it "
                "and give its files as `path`."
            ) from error
        number += 1
        yield f"{source.dataset}[{source.dataset_split}]", number, row

"""Documents between the stages of a corpus: Parquet parts, and a ledger of what became of every document.

A document is datatrove's `Document`: `text`, `id`, and in `metadata` its `source`, `language` and `url`. A stage reads
parts and writes parts of the same names, one task a part, so that the result depends on neither workers nor executor.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep


SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "language", "url")])
# Rows are written and read in groups of about so many bytes of text.
GROUP_BYTES = 8_000_000
# Counts of a source's bytes by language, such as "bytes_out:ko".
BYTES_OUT = "bytes_out:"
EXAMPLE_CHARACTERS = 300
EXAMPLES_PER_REASON = 3


def make_document(text: str, id: str, source: str, language: str | None = None, url: str | None = None) -> Document:
    """A document as the stages pass it on."""
    return Document(text=text, id=id, metadata={"source": source, "language": language, "url": url})


class Ledger:
    """What became of the documents of one task: counts by source, drops by source and reason, a few examples.

    `counts[source][name]` and `dropped[source][reason] = {"documents", "bytes"}` add up over tasks;
    `examples[reason]` keeps the first few.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, float]] = {}
        self.dropped: dict[str, dict[str, dict[str, int]]] = {}
        self.examples: dict[str, list[dict[str, str]]] = {}
        # Where a running task says how far it is; set by the executor.
        self.progress_file: Path | None = None
        self._progress_at = 0.0
        self._progress = 0

    def count(self, source: str, **numbers: float) -> None:
        """Add numbers to the source's counts."""
        counts = self.counts.setdefault(source, {})
        for name, number in numbers.items():
            counts[name] = counts.get(name, 0) + number

    def count_out(self, document: Document) -> None:
        """Count a document that goes on to the next stage, by its language too."""
        size = len(document.text.encode("utf-8"))
        language = f"{BYTES_OUT}{document.metadata['language'] or 'und'}"
        self.count(document.metadata["source"], documents_out=1, bytes_out=size, **{language: size})

    def drop(self, document: Document, reason: str) -> None:
        """Count a document that goes no further."""
        self.drop_text(document.metadata["source"], reason, document.text, document.id)

    def drop_text(self, source: str, reason: str, text: str, id: str) -> None:
        """Count a text that never became a document, or a piece cut out of one."""
        drops = self.dropped.setdefault(source, {}).setdefault(reason, {"documents": 0, "bytes": 0})
        drops["documents"] += 1
        drops["bytes"] += len(text.encode("utf-8", "replace"))
        self.example(source, reason, text, id)

    def example(self, source: str, reason: str, text: str, id: str) -> None:
        """Keep a text to show for a reason, if there are not enough of them."""
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES_PER_REASON:
            shown = text[:EXAMPLE_CHARACTERS].encode("utf-8", "replace").decode()
            examples.append({"source": source, "id": id, "text": shown})

    def tick(self) -> None:
        """Say that one more document was read."""
        self._progress += 1
        now = time.monotonic()
        if now - self._progress_at > 1.0:
            self._progress_at = now
            self.write_progress()

    def write_progress(self) -> None:
        """Say how many documents were read."""
        if self.progress_file is not None:
            self.progress_file.write_text(str(self._progress))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"counts": self.counts, "dropped": self.dropped, "examples": self.examples}

    @classmethod
    def merged(cls, ledgers: Iterable[dict[str, Any]]) -> "Ledger":
        """The sum of the ledgers of all tasks, in their order."""
        total = cls()
        for ledger in ledgers:
            for source, counts in ledger["counts"].items():
                total.count(source, **counts)
            for source, reasons in ledger["dropped"].items():
                for reason, numbers in reasons.items():
                    drops = total.dropped.setdefault(source, {}).setdefault(reason, {"documents": 0, "bytes": 0})
                    for name, number in numbers.items():
                        drops[name] += number
            for reason, examples in ledger["examples"].items():
                kept = total.examples.setdefault(reason, [])
                kept.extend(examples[: EXAMPLES_PER_REASON - len(kept)])
        return total


class Step(PipelineStep):
    """A datatrove step that keeps a ledger."""

    type = "hfgpt"
    name = "step"

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger


def list_parts(folder: str | Path) -> list[Path]:
    """The parts of a stage, in order."""
    return sorted(Path(folder).glob("*.parquet"))


def read_documents(part: str | Path) -> Iterator[Document]:
    """The documents of one part."""
    with pyarrow.parquet.ParquetFile(part) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                yield make_document(**row)


class PartWriter:
    """Writes documents to one Parquet file that appears, whole, under its name when it is closed."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = pyarrow.parquet.ParquetWriter(self._temporary, SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, document: Document) -> None:
        """Add a document."""
        self._rows.append({"id": document.id, "text": document.text, **document.metadata})
        self._bytes += len(document.text)
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Put the file in its place."""
        self._flush()
        self._file.close()
        os.replace(self._temporary, self.path)

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


class ReadPart(Step):
    """Reads part number `rank` of a folder."""

    name = "read documents"

    def __init__(self, folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents."""
        for document in read_documents(list_parts(self.folder)[rank]):
            self.ledger.tick()
            self.ledger.count(document.metadata["source"], documents_in=1, bytes_in=len(document.text.encode("utf-8")))
            yield document


class WritePart(Step):
    """Writes what is left of part number `rank` under the same name in another folder."""

    name = "write documents"

    def __init__(self, read_from: Path, folder: Path, ledger: Ledger):
        super().__init__(ledger)
        self.read_from, self.folder = read_from, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Consume the documents."""
        with PartWriter(self.folder / list_parts(self.read_from)[rank].name) as writer:
            for document in data:
                self.ledger.count_out(document)
                writer.write(document)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write a file that appears under its name when it is whole; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    yield temporary
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or not there."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n"
    with written_whole(path) as temporary:
        # Names of files need not be UTF-8: what is not is escaped, as JSON has it.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))

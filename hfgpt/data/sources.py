"""The first stage of a corpus: rows of its sources become documents, in parts of about equal size."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from datatrove.data import Document

from .documents import Ledger, PartWriter, Step, make_document, write_json
from .readers import RowErrors, SourceConfig, read_rows, split_files


MALFORMED = "malformed row"


@dataclass
class CorpusSource(SourceConfig):
    """A source of a corpus: where its rows come from, and what it counts for."""

    curated: bool = field(
        default=True,
        metadata={
            "help": "false for a raw crawl: its pages are cleaned by rules, must pass the quality classifier, and give "
            "way to curated sources among near-duplicates."
        },
    )
    weight: float | None = field(
        default=None,
        metadata={"help": "Share of the training sequences, normalised over all sources. Default: by its tokens."},
    )
    language: str | None = field(
        default=None, metadata={"help": "ISO 639-1 code of all its documents. Default: detected for each."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"`weight` must be above 0, got {self.weight} for source {self.name!r}.")


@dataclass
class ReadTask:
    """What one task reads: all of a source, or some of its files."""

    source: CorpusSource
    files: list[str]

    @property
    def part_of_source(self) -> SourceConfig:
        """The source, narrowed to these files."""
        return replace(self.source, path=self.files) if self.files else self.source


def plan_reading(sources: list[CorpusSource], part_bytes: int) -> list[ReadTask]:
    """The tasks that read the sources, in their order.

    Raises:
        ValueError: A file is not there.
    """
    return [ReadTask(source, files) for source in sources for files in split_files(source, part_bytes)]


class ReadRows(Step):
    """Reads the rows of task `rank`; what is no document is counted, malformed rows with their file and line."""

    name = "read rows"

    def __init__(self, tasks: list[ReadTask], bad_rows: Path, max_bad_rows: int | None, ledger: Ledger):
        super().__init__(ledger)
        self.tasks, self.bad_rows, self.max_bad_rows = tasks, bad_rows, max_bad_rows

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents; `markup` in their metadata says what is still to be taken out of the text."""
        source = self.tasks[rank].part_of_source
        name = source.name
        errors = RowErrors(self.max_bad_rows)
        for number, row in enumerate(read_rows(source, errors)):
            self.ledger.tick()
            text = row[source.text_field]
            self.ledger.count(name, documents_in=1, bytes_in=len(text.encode("utf-8")))
            url = row.get("url")
            # Only the text must be whole; an address with broken bytes is no reason to lose it.
            url = url.encode("utf-8", "replace").decode() if isinstance(url, str) else None
            document = make_document(text, f"{name}/{rank}/{number}", name, url=url)
            document.metadata["markup"] = source.markup_of(row)
            yield document
        for reason, passed in errors.passed_over.items():
            self._count(name, reason, passed)
        self._count(name, MALFORMED, errors.count)
        write_json(self.bad_rows / f"{rank:05d}.json", {"count": errors.count, "examples": errors.examples})

    def _count(self, source: str, reason: str, documents: int) -> None:
        if documents:
            self.ledger.count(source, documents_in=documents)
            self.ledger.dropped.setdefault(source, {})[reason] = {"documents": documents, "bytes": 0}


class WriteParts(Step):
    """Writes what task `rank` has read as parts of about `part_bytes`; a part holds documents of one source."""

    name = "write documents"

    def __init__(self, folder: Path, part_bytes: int, ledger: Ledger):
        super().__init__(ledger)
        self.folder, self.part_bytes = folder, part_bytes

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        """Consume the documents."""
        document = next(data, None)
        for number in count():
            with PartWriter(self.folder / f"{rank:05d}-{number:05d}.parquet") as writer:
                size = 0
                while document is not None and size < self.part_bytes:
                    self.ledger.count_out(document)
                    writer.write(document)
                    size += len(document.text.encode("utf-8"))
                    document = next(data, None)
            if document is None:
                return


def read_bad_rows(folder: Path, max_bad_rows: int | None) -> dict[str, Any]:
    """Malformed rows of all tasks: their number and the first few.

    Raises:
        ValueError: There are more than `max_bad_rows`.
    """
    total = RowErrors()
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        total.count += found["count"]
        total.examples.extend(found["examples"][: total.max_examples - len(total.examples)])
    total.limit = max_bad_rows
    total.check()
    return {"count": total.count, "examples": total.examples}

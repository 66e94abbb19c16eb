"""Rows of any data set as a task's examples: fields and labels by the user's names, bad rows by file and line, counted."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from ..data.readers import RowErrors, SourceConfig, WantedRows, numbered_rows
from .base import Example, RowError, Task


@dataclass(frozen=True)
class FieldMap:
    """How a data set's rows are read as a task's.

    Attributes:
        fields: The data set's field for each of the task's, where the names differ; a dotted path goes into mappings and
            lists of them: `answers.text`, `translation.en`.
        label_map: The task's label for each value of its label field.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    label_map: Mapping[str, str] = field(default_factory=dict)

    def check(self, task: Task) -> None:
        """Raise a `ValueError` for a field that the task does not have."""
        unknown = [name for name in self.fields if name not in task.fields]
        if unknown:
            raise ValueError(
                f"`fields` names {', '.join(unknown)}, which task {task.name!r} does not have; its fields are "
                f"{', '.join(task.fields)}."
            )

    def example(self, row: Mapping[str, Any], task: Task, where: str) -> Example:
        """What `task` asks of a row of the data.

        Raises:
            RowError: It cannot be asked; the message has the data's names of fields.
        """
        values = self.apply(row, task)
        try:
            return task.example(values, where)
        except RowError as error:
            # In one pass: the data may have a name of the task's for something else.
            said = re.sub(r"`(\w+)`", lambda name: f"`{self.fields.get(name[1], name[1])}`", str(error))
            raise RowError(said) from None

    def apply(self, row: Mapping[str, Any], task: Task) -> dict[str, Any]:
        """A row by the task's names.

        Raises:
            RowError: A field is missing, or has bytes that are no text.
        """
        values = {}
        for name in task.fields:
            path = self.fields.get(name, name)
            values[name] = _lookup(row, path)
            if not _is_utf8(values[name]):
                raise RowError(f"field `{path}` is not valid UTF-8")
        label_field = getattr(task, "label_field", None)
        if label_field in values and self.label_map:
            value = values[label_field]
            values[label_field] = self.label_map.get(str(value), value)
        return values


def _lookup(row: Mapping[str, Any], path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, list) and value and all(isinstance(item, Mapping) and part in item for item in value):
            value = [item[part] for item in value]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise RowError(f"no field `{path}`; the fields are {', '.join(map(str, row)) or '(none)'}")
    return value


def _is_utf8(value: Any) -> bool:
    # Readers leave a lone surrogate for each byte they cannot decode, and so does JSON with an escape of one.
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return all(map(_is_utf8, value)) if isinstance(value, (list, tuple)) else True


def read_examples(
    task: Task, source: SourceConfig, errors: RowErrors, field_map: FieldMap | None = None, progress: bool = True
) -> list[Example]:
    """The examples of one source.

    Args:
        task: Whose prompt and completion they get.
        source: Where the rows come from; its `where`, `part` and `max_rows` hold. `text_field` names the field that a
            row is told apart by where it is divided into parts.
        errors: Takes the rows that cannot be asked, by file and line.
        field_map: Names of fields and labels. Default: the task's own.
        progress: Show a bar.

    Raises:
        ValueError: No rows, no such file, a field that the task does not have, or too many malformed rows.
    """
    field_map = field_map or FieldMap()
    field_map.check(task)
    examples = list(
        tqdm(
            _examples(task, source, errors, field_map),
            desc=f"{task.name}, {source.name}",
            unit=" rows",
            disable=None if progress else True,
            leave=False,
        )
    )
    if not examples:
        shown = "".join(f"\n  {example}" for example in errors.examples)
        raise ValueError(
            f"No {source.name} rows ({errors.count} malformed): check the paths, `fields`, `where` and "
            f"`test_fraction`.{shown}"
        )
    return examples


def _examples(task: Task, source: SourceConfig, errors: RowErrors, field_map: FieldMap) -> Iterator[Example]:
    wanted, taken = WantedRows(source), 0
    for file, line, row in numbered_rows(source, errors):
        missing = [key for key in (source.group_by, *(source.where or ())) if key is not None and key not in row]
        if missing:
            errors.add(file, line, f"no field `{missing[0]}`; the fields are {', '.join(map(str, row)) or '(none)'}")
            continue
        # Where rows are told apart by their text, they need one.
        if source.part != "all" and not source.group_by and not isinstance(row.get(source.text_field), str):
            errors.add(file, line, f"no text in `{source.text_field}`")
            continue
        key = source.group_by or source.text_field
        if source.part != "all" and not _is_utf8(row[key]):
            errors.add(file, line, f"field `{key}` is not valid UTF-8")
            continue
        reason = wanted.why_not(row)
        if reason:
            errors.pass_over(reason)
            continue
        try:
            example = field_map.example(row, task, f"{file}:{line}")
        except RowError as error:
            errors.add(file, line, str(error))
            continue
        yield example
        taken += 1
        if source.max_rows is not None and taken >= source.max_rows:
            return

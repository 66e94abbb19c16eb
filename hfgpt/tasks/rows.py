"""Rows of any data set as a task's examples: fields and labels by the user's names, bad rows by file and line, counted."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from ..data.readers import RowErrors, SourceConfig, WantedRows, numbered_rows
from .base import Example, RowError, Task, label_name


@dataclass(frozen=True)
class FieldMap:
    """How a data set's rows are read as a task's.

    Attributes:
        fields: The data set's field for each of the task's, where the names differ; a dotted path goes into mappings and
            lists of them: `answers.text`, `translation.en`.
        label_map: The task's label for each value of its label field, whatever its type: see `label_name`.
        optional: Fields of the task that may have the task's own name, in rows without the one in `fields`: what a model
            was trained with says nothing about another file. Names that the user gives for this one are not among them.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    label_map: Mapping[str, str] = field(default_factory=dict)
    optional: Collection[str] = ()

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
            said = re.sub(r"`(\w+)`", lambda name: f"`{self.path(row, name[1])}`", str(error))
            raise RowError(said) from None

    def apply(self, row: Mapping[str, Any], task: Task) -> dict[str, Any]:
        """A row by the task's names.

        Raises:
            RowError: A field is missing, or has bytes that are no text.
        """
        values = {}
        for name in task.fields:
            path = self.path(row, name)
            values[name] = lookup(row, path)
            if not is_utf8(values[name]):
                raise RowError(f"field `{path}` is not valid UTF-8")
        label_field = getattr(task, "label_field", None)
        if label_field in values and self.label_map:
            known = label_name(values[label_field], self.label_map)
            if known is not None:
                values[label_field] = self.label_map[known]
        return values

    def path(self, row: Mapping[str, Any], name: str) -> str:
        """Where a row has a field of the task."""
        path = self.fields.get(name, name)
        return name if name in self.optional and name in row and not _has(row, path) else path


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """A field of a row, or one inside another by a dotted path: see `FieldMap.fields`.

    Raises:
        RowError: There is none.
    """
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


def _has(row: Mapping[str, Any], path: str) -> bool:
    try:
        lookup(row, path)
    except RowError:
        return False
    return True


def is_utf8(value: Any) -> bool:
    """Whether all text in a value can be encoded.

    Readers leave a lone surrogate for each byte they cannot decode, and so does JSON with an escape of one.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    if isinstance(value, Mapping):
        value = list(value.values())
    return all(map(is_utf8, value)) if isinstance(value, (list, tuple)) else True


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
        try:
            reason = wanted.why_not(_chosen_by(row, source, field_map))
            example = field_map.example(row, task, f"{file}:{line}") if reason is None else None
        except RowError as error:
            errors.add(file, line, str(error))
            continue
        if example is None:
            errors.pass_over(str(reason))
            continue
        yield example
        taken += 1
        if source.max_rows is not None and taken >= source.max_rows:
            return


def _chosen_by(row: Mapping[str, Any], source: SourceConfig, field_map: FieldMap) -> dict[str, Any]:
    """What `where` and `part` look at.

    Raises:
        RowError: The row does not have it.
    """
    values = {key: lookup(row, key) for key in (source.group_by, *(source.where or ())) if key is not None}
    if source.part == "all":
        return values
    key = source.group_by or source.text_field
    if not source.group_by:
        # It may be one of the task's, and `optional`.
        name = next((name for name, path in field_map.fields.items() if path == key), None)
        path = field_map.path(row, name) if name is not None else key
        try:
            value = lookup(row, path)
        except RowError as error:
            raise RowError(f"no text in `{path}`, by which rows are told apart: {error}") from None
        if value is None:
            raise RowError(f"no text in `{path}`, by which rows are told apart")
        values[key] = value
    if not is_utf8(values[key]):
        raise RowError(f"field `{key}` is not valid UTF-8")
    if not source.group_by and not isinstance(values[key], str):
        values[key] = json.dumps(values[key], sort_keys=True, default=str)
    return values

"""What a model was fine-tuned for, kept beside its weights: evaluation then asks it just as training did."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..config import from_mapping
from .base import Task


TASK_FILE = "task.json"
HEADS = ("lm", "classification", "span")


@dataclass(frozen=True)
class TaskRecord:
    """A task as a model was trained for it.

    Attributes:
        task: The task with the run's own prompt and label words.
        kind: "choice" or "text".
        language: Such as "ko" or "en-ko".
        head: "lm" (completions), "classification" (of the prompt) or "span" (of the passage).
        classifier_pooling: What a classification layer reads: "last" or "mean"; an adapter has no config to say so.
        max_length: Tokens of prompt and answer.
        fields: The data set's field for each of the task's.
        label_map: The task's label for each value of the label field.
    """

    task: Task
    kind: str
    language: str
    head: str = "lm"
    classifier_pooling: str = "last"
    max_length: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    label_map: Mapping[str, str] = field(default_factory=dict)


def save_task(record: TaskRecord, folder: str | Path) -> None:
    """Write `task.json` into a model's folder."""
    path = Path(folder) / TASK_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(record), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def saved_task(folder: str | Path) -> TaskRecord | None:
    """What `save_task` wrote; None where a folder has no such file.

    Raises:
        ValueError: The file is damaged, or of another version.
    """
    from . import KINDS

    path = Path(folder) / TASK_FILE
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = KINDS[values["kind"]]
        known = {f.name for f in fields(TaskRecord)}
        unknown = set(values) - known
        if unknown or values.get("head") not in HEADS:
            raise ValueError(f"unknown {', '.join(sorted(unknown)) or 'head'}")
        return TaskRecord(**{**values, "task": from_mapping(kind, values["task"], str(path))})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): fine-tune again, or name `--tasks` and remove it."
        ) from None

"""Tasks for fine-tuning and evaluation. A task is data: a prompt, its completions, and how it is scored.

A new one is a file like `sentiment.py`, or a YAML file whose path stands in the place of a name:

    name: nli
    kind: choice                        # or text, or cloze
    languages:
      en:
        prompt: "{premise} Question: {hypothesis} True or false? Answer:"
        choices: {entailment: " true", contradiction: " false"}
"""

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..config import coerce, from_mapping, read_yaml, unknown_key
from .base import ChoiceTask, Example, RowError, Task, TextTask
from .cloze import CLOZE_QA, ClozeTask
from .qa import FREE_QA, QA
from .sentiment import SENTIMENT
from .translation import TRANSLATION


# By name, then by language.
TASKS: dict[str, Mapping[str, Task]] = {
    "sentiment": SENTIMENT,
    "translation": TRANSLATION,
    "qa": QA,
    "free-qa": FREE_QA,
    "cloze-qa": CLOZE_QA,
}
KINDS: dict[str, type[Task]] = {"choice": ChoiceTask, "text": TextTask, "cloze": ClozeTask}


def get_task(name: str, language: str = "en") -> Task:
    """A task by name (or path of a YAML file) and language.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    if name.endswith((".yaml", ".yml")):
        languages: Mapping[str, Task] = load_task(name)
    elif name in TASKS:
        languages = TASKS[name]
    else:
        near = get_close_matches(name, TASKS, n=1)
        hint = f": did you mean `{near[0]}`?" if near else "."
        raise ValueError(
            f"Unknown `task` {name!r}{hint} The tasks are {', '.join(TASKS)}, or the path of a YAML file."
        )
    if language not in languages:
        raise ValueError(f"Task {name!r} has no `language` {language!r}; it has {', '.join(languages)}.")
    return languages[language]


def load_task(path: str | Path) -> dict[str, Task]:
    """A task from a YAML file, by language: `name`, `kind` (choice, text or cloze), fields that all languages share, and
    `languages` with those that differ.

    Raises:
        ValueError: The file or a field is not what a task takes.
    """
    values = read_yaml(path)
    languages, kind = values.pop("languages", None), values.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"`kind` in {path} must be one of {', '.join(KINDS)}, got {kind!r}.")
    if not isinstance(languages, dict) or not languages:
        raise ValueError(f"`languages` in {path} must map languages to fields, such as {{en: {{prompt: ...}}}}.")
    values.setdefault("name", Path(path).stem)
    tasks: dict[str, Task] = {}
    for language, own in coerce(languages, dict[str, Any], f"`languages` in {path}").items():
        if not isinstance(own, dict):
            raise ValueError(f"`languages.{language}` in {path} must be a mapping of fields, got {own!r}.")
        tasks[language] = from_mapping(KINDS[kind], {**values, **own}, f"{path}, language {language}")
    return tasks


def with_changes(task: Task, changes: Mapping[str, Any], where: str) -> Task:
    """`task` with some of its fields replaced, checked for name and type.

    Raises:
        ValueError: A field that this kind of task does not have, or a wrong value.
    """
    own = asdict(task)
    for key in changes:
        if key not in own:
            raise unknown_key(key, own, where)
    return from_mapping(type(task), {**own, **changes}, where)


__all__ = [
    "TASKS",
    "ChoiceTask",
    "ClozeTask",
    "Example",
    "RowError",
    "Task",
    "TextTask",
    "get_task",
    "load_task",
    "with_changes",
]

"""Tasks for fine-tuning and evaluation. A task is data: a prompt, its completions, and how it is scored."""

from .base import ChoiceTask
from .sentiment import SENTIMENT


# By name, then by language.
TASKS: dict[str, dict[str, ChoiceTask]] = {"sentiment": SENTIMENT}


def get_task(name: str, language: str = "en") -> ChoiceTask:
    """A task by name and language.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    if name not in TASKS:
        raise ValueError(f"Unknown `task` {name!r}; the tasks are {', '.join(TASKS)}.")
    if language not in TASKS[name]:
        raise ValueError(f"Task {name!r} has no `language` {language!r}; it has {', '.join(TASKS[name])}.")
    return TASKS[name][language]


__all__ = ["TASKS", "ChoiceTask", "get_task"]

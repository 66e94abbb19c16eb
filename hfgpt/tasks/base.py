"""What a task is: data that says how a row becomes a prompt, a completion, and a way to score answers.

Two kinds: a `ChoiceTask` picks the likeliest of several completions, a `TextTask` writes its own. A new one is an instance
of either in a file of a few lines, or a YAML file (`load_task`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Literal

from ..data.readers import as_text


class RowError(ValueError):
    """A row that cannot be asked: its message says why, in terms of the row's fields."""


@dataclass(frozen=True)
class Example:
    """One row as a task asks it. The prompt is `before + text + after`; only `text` may be cut where it is too long.

    Attributes:
        before: Prompt up to the text.
        text: The row's own long field, such as the review or the passage.
        after: Prompt behind it; it does not end in white space, completions bring their own.
        completion: What should follow; "" where the row has no answer (to be predicted only).
        choices: Completions to choose from, in the order of class indices; empty for free text.
        label: Index of `completion` among the choices; None where there are none.
        references: Answers that count as right, the one that is learnt first; for a choice the name of the right one.
        where: File and line of the row, for messages.
        cut_side: Which part of too long a text is cut: its "end" or its "start".
    """

    before: str
    text: str
    after: str
    completion: str
    choices: tuple[str, ...] = ()
    label: int | None = None
    references: tuple[str, ...] = ()
    where: str = ""
    cut_side: Literal["end", "start"] = "end"

    @property
    def prompt(self) -> str:
        """What the model reads before its answer."""
        return self.before + self.text + self.after


@dataclass(frozen=True)
class Task:
    """What both kinds share.

    Attributes:
        name: Name in reports.
        prompt: Template over a row's fields, each as `{field}`. It does not end in white space: the completion brings
            its own, as byte-level BPE likes it.
        metrics: Names of metrics in `tasks.metrics`; the first one is what early stopping and plots look at.
        cut_field: Field that is cut where the prompt is longer than the model's positions. Default: the last one of the
            prompt.
        cut_side: What it loses: its "end", or its "start", as where the answer goes on from its end.
        separator: Between the examples of a few-shot prompt.
    """

    name: str
    prompt: str
    metrics: list[str] = field(default_factory=list)
    cut_field: str = ""
    cut_side: Literal["end", "start"] = "end"
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        names = self.prompt_fields
        if "" in names or len(set(names)) != len(names):
            raise ValueError(f"`prompt` of task {self.name!r} must name each field once, got {self.prompt!r}.")
        if not names:
            raise ValueError(f"`prompt` of task {self.name!r} has no field in it, such as {{text}}: {self.prompt!r}.")
        if self.cut_field and self.cut_field not in names:
            raise ValueError(f"`cut_field: {self.cut_field}` of task {self.name!r} is not in its prompt: {names}.")
        if self.cut_side not in ("end", "start"):
            raise ValueError(f"`cut_side` of task {self.name!r} must be end or start, got {self.cut_side!r}.")
        if self.prompt != self.prompt.rstrip():
            raise ValueError(
                f"`prompt` of task {self.name!r} ends in white space: give it to the completions instead."
            )
        if not self.metrics:
            raise ValueError(f"`metrics` of task {self.name!r} is empty: name one at least, such as accuracy.")

    @property
    def prompt_fields(self) -> list[str]:
        """Fields in the prompt, in order."""
        return template_fields(self.prompt, f"`prompt` of task {self.name!r}")

    @property
    def fields(self) -> list[str]:
        """All fields that a row is to have."""
        return self.prompt_fields

    def render(self, row: Mapping[str, Any]) -> tuple[str, str, str]:
        """The prompt of a row, as what stands before, in and after the field that may be cut.

        Raises:
            RowError: A field is missing or is not text.
        """
        values = {name: text_of(row, name) for name in self.prompt_fields}
        cut = self.cut_field or self.prompt_fields[-1]
        parts = list(Formatter().parse(self.prompt))
        place = next(index for index, part in enumerate(parts) if part[1] == cut)
        before = _fill(parts[:place], values) + parts[place][0]
        text, after = values[cut], _fill(parts[place + 1 :], values)
        # Completions bring the space before them.
        return (before, text, after.rstrip()) if after else (before, text.rstrip(), after)

    def example(self, row: Mapping[str, Any], where: str = "") -> Example:
        """What is asked of one row.

        Args:
            row: Its values by the task's names of fields.
            where: File and line.

        Raises:
            RowError: A field is missing, the label is unknown, or the answer is empty or not where it must be.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ChoiceTask(Task):
    """Choose one of several completions of a prompt.

    Attributes:
        choices: Completion of each label, in the order of class indices; or none, and each row brings its own in
            `choices_field`.
        choices_field: Field with a row's own list of choices.
        choice: Template of a completion made of one of those.
        label_field: Field of the right answer: the label, or with `choices_field` its index or text.
        normalization: What is compared: the log-likelihood per "token" (the paper's), minus that of the same completion
            after `unconditional_prompt` ("unconditional"; the paper's for ARC, OpenBookQA and RACE), or the "sum".
        unconditional_prompt: The context of that.
    """

    choices: dict[str, str] = field(default_factory=dict)
    choices_field: str = ""
    choice: str = " {choice}"
    label_field: str = "label"
    normalization: str = "token"
    unconditional_prompt: str = "Answer:"
    metrics: list[str] = field(default_factory=lambda: ["accuracy", "macro_f1"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.choices_field) == bool(self.choices):
            raise ValueError(f"Task {self.name!r} takes `choices` or `choices_field`, one of them.")
        if not self.choices_field and len(self.choices) < 2:
            raise ValueError(f"Task {self.name!r} needs at least two `choices`, got {self.choices}.")
        if self.normalization not in ("token", "unconditional", "sum"):
            raise ValueError(
                f"`normalization` of task {self.name!r} must be token, unconditional or sum, got {self.normalization!r}."
            )
        if self.normalization == "unconditional" and not self.unconditional_prompt:
            raise ValueError(
                f"`normalization: unconditional` of task {self.name!r} needs an `unconditional_prompt`, such as 'Answer:'."
            )
        empty = [label for label, completion in self.choices.items() if not completion.strip()]
        if empty:
            raise ValueError(f"`choices` of task {self.name!r} has no completion for {', '.join(map(repr, empty))}.")
        if template_fields(self.choice, f"`choice` of task {self.name!r}") != ["choice"]:
            raise ValueError(
                f"`choice` of task {self.name!r} must hold {{choice}} once and no other field, got {self.choice!r}."
            )

    @property
    def labels(self) -> list[str]:
        """Names of the classes, by index; none where each row brings its own choices."""
        return list(self.choices)

    @property
    def fields(self) -> list[str]:
        """All fields that a row is to have."""
        return [*self.prompt_fields, *([self.choices_field] if self.choices_field else []), self.label_field]

    def example(self, row: Mapping[str, Any], where: str = "") -> Example:
        """See `Task.example`."""
        before, text, after = self.render(row)
        value = value_of(row, self.label_field)
        if self.choices:
            names, completions = self.labels, list(self.choices.values())
            name = label_name(value, names)
            if name is None:
                raise RowError(
                    f"Label {value!r} in `{self.label_field}` is not one of {', '.join(names)}: map it with "
                    f'`label_map`, such as {{"{as_text(value)}": "{names[0]}"}}, or leave such rows out with `where`'
                )
            label = names.index(name)
        else:
            given = value_of(row, self.choices_field)
            if not isinstance(given, (list, tuple)) or len(given) < 2 or not all(map(_is_text, given)):
                raise RowError(f"`{self.choices_field}` must be a list of two or more texts, got {given!r}")
            names = [choice.strip() for choice in given]
            completions = [fill(self.choice, choice=choice) for choice in names]
            label = self._index(value, names)
        choices, references = tuple(completions), (names[label],)
        return Example(before, text, after, choices[label], choices, label, references, where, self.cut_side)

    def _index(self, value: Any, names: list[str]) -> int:
        if isinstance(value, str) and value.strip() in names:
            return names.index(value.strip())
        try:
            index = int(value)
        except (TypeError, ValueError, OverflowError):
            index = -1
        if not 0 <= index < len(names) or isinstance(value, bool) or (isinstance(value, float) and value != index):
            raise RowError(
                f"`{self.label_field}` must be one of the row's choices or its index from 0 to {len(names) - 1}, "
                f"got {value!r}"
            )
        return index


@dataclass(frozen=True)
class TextTask(Task):
    """Write an answer.

    Attributes:
        target_field: Field of the answer: a text, or a list of texts that all count as right, whose first one is learnt
            (of an extractive task: the first that stands in the context).
        completion: Template of the completion made of it, as `{target}`.
        context_field: Field of the prompt that the answer must stand in, word for word (extractive); empty: anywhere.
        no_answer: What is written where the list of answers is empty; empty: such a row is malformed.
        stop: Texts at which an answer ends. The end-of-text token always ends it.
        max_new_tokens: Tokens of an answer at most.
        num_beams, length_penalty: Beam search. Source: section 2.4 of Brown et al. 2020 (4 beams, 0.6).
    """

    target_field: str = "target"
    completion: str = " {target}"
    context_field: str = ""
    no_answer: str = ""
    stop: list[str] = field(default_factory=lambda: ["\n"])
    max_new_tokens: int = 64
    num_beams: int = 4
    length_penalty: float = 0.6
    metrics: list[str] = field(default_factory=lambda: ["exact_match", "f1"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_field and self.context_field not in self.prompt_fields:
            raise ValueError(
                f"`context_field: {self.context_field}` of task {self.name!r} is not in its prompt: {self.prompt_fields}."
            )
        if set(template_fields(self.completion, f"`completion` of task {self.name!r}")) != {"target"}:
            raise ValueError(
                f"`completion` of task {self.name!r} must hold {{target}} and no other field, got {self.completion!r}."
            )
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` of task {self.name!r} must be at least 1, got {getattr(self, name)}.")

    @property
    def fields(self) -> list[str]:
        """All fields that a row is to have."""
        return [*self.prompt_fields, self.target_field]

    def example(self, row: Mapping[str, Any], where: str = "") -> Example:
        """See `Task.example`."""
        before, text, after = self.render(row)
        value = value_of(row, self.target_field)
        answers = [value] if isinstance(value, str) else value
        if not isinstance(answers, (list, tuple)) or not all(isinstance(answer, str) for answer in answers):
            raise RowError(f"`{self.target_field}` must be a text or a list of texts, got {value!r}")
        answers = [answer.strip() for answer in answers]
        if not answers and self.no_answer:
            answers = [self.no_answer]
        elif not answers or not all(answers):
            raise RowError(f"the answer in `{self.target_field}` is empty")
        elif self.context_field:
            context = text_of(row, self.context_field)
            learnt = next((answer for answer in answers if answer in context), None)
            if learnt is None:
                raise RowError(f"the answer {answers[0]!r} does not stand in `{self.context_field}`")
            answers = [learnt, *answers]
        references = tuple(dict.fromkeys(answers))
        completion = fill(self.completion, target=references[0])
        return Example(before, text, after, completion, (), None, references, where, self.cut_side)


def template_fields(template: str, where: str) -> list[str]:
    """The fields of a template, in order.

    Args:
        template: Text with fields as `{field}`; a brace that is text is doubled.
        where: What it is, for messages.

    Raises:
        ValueError: It is no template, or says how a field is to be formatted.
    """
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{where} is no template ({error}): {template!r}. A brace that is text is doubled.") from None
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError(f"{where} takes a field as it is, such as {{text}}, without `!` or `:`, got {template!r}.")
    return [str(name) for _, name, _, _ in parts]


def fill(template: str, **values: str) -> str:
    """A template with its fields filled in. Unlike `str.format` it takes a name with a dot in it as one."""
    return _fill(list(Formatter().parse(template)), values)


def _fill(parts: Sequence[Sequence[str | None]], values: Mapping[str, str]) -> str:
    return "".join(f"{text}{'' if name is None else values[name]}" for text, name, *_ in parts)


def label_name(value: Any, names: Iterable[str]) -> str | None:
    """Which of some names a row's label is, whatever type its file gives it (see `as_text`); None where it is none."""
    names = list(names)
    return str(value) if str(value) in names else {as_text(name): name for name in names}.get(as_text(value))


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """A field of a row.

    Raises:
        RowError: There is none.
    """
    if name not in row:
        raise RowError(f"no field `{name}`; the fields are {', '.join(map(str, row)) or '(none)'}")
    return row[name]


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A field of a row that holds text.

    Raises:
        RowError: It is missing, empty, or something else.
    """
    value = value_of(row, name)
    if not isinstance(value, str):
        raise RowError(f"field `{name}` must be text, got {type(value).__name__}")
    if not value.strip():
        raise RowError(f"field `{name}` is empty")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())

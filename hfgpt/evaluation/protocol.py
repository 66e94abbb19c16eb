"""The paper's way of asking: K examples of the training split before each row, and what is compared in the answers.

Source: section 2.4 of Brown et al. 2020. For each row K examples are drawn at random from the training split; they
stand before it as they would be answered, with one or two newlines between them. Choices are compared by likelihood per
token, or normalized by their unconditional probability (`ChoiceTask.normalization`); free text is written by beam search
(`TextTask.num_beams`, `length_penalty`). Two forms are only of evaluation, and are here: Winogrande's "partial" one
(`PartialTask`), and LAMBADA's last word (`LastWordTask`).

A row with its examples is tokenized as one text, as the model met such text in training: pieces tokenized one by one
would meet at other tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any

from ..data.mixture import permute
from ..data.readers import RowErrors
from ..tasks.base import ChoiceTask, Example, Task, TextTask, text_of
from ..tasks.encoding import Encoded, continuation_ids, encode, first_ids, token_ids
from ..tasks.scoring import Prediction, check_numbers, log_likelihoods, predict


# Examples that do not fit, after which no more are drawn for a row: its context is full.
PASSED_OVER = 64
# What a missed last word is called: the model's own word is not looked for.
OTHER_WORD = "(another word)"


@dataclass(frozen=True)
class PartialExample(Example):
    """A row of a `PartialTask`. Its choices are the option and the ending together.

    Attributes:
        ending: What is scored after each option.
    """

    ending: str = ""


@dataclass(frozen=True)
class PartialTask(ChoiceTask):
    """A choice by what follows it: the likelihood of one ending after the prompt with each of the options.

    Where a row's fields of the prompt are all "" there is none: the options begin the text, without a space.

    Attributes:
        ending_field: Field of the text behind the option, with its leading space.
    """

    ending_field: str = "ending"

    @property
    def fields(self) -> list[str]:
        """All fields that a row is to have."""
        return [*super().fields, self.ending_field]

    def render(self, row: Any) -> tuple[str, str, str]:
        """See `Task.render`."""
        empty = all(row.get(name) == "" for name in self.prompt_fields)
        return ("", "", "") if empty else super().render(row)

    def example(self, row: Any, where: str = "") -> PartialExample:
        """See `Task.example`."""
        ending = text_of(row, self.ending_field)
        example = super().example(row, where)
        assert example.label is not None
        choices = tuple((choice if example.prompt else choice.lstrip()) + ending for choice in example.choices)
        values = {f.name: getattr(example, f.name) for f in fields(Example)}
        values.update(choices=choices, completion=choices[example.label])
        return PartialExample(**values, ending=ending)


@dataclass(frozen=True)
class LastWordTask(TextTask):
    """The word that ends a text. Right is a word of which the model finds each token the likeliest."""

    metrics: list[str] = field(default_factory=lambda: ["exact_match"])


@dataclass(frozen=True)
class Asked:
    """A row as the model reads it.

    Attributes:
        row: By itself.
        example: With the examples before it.
        encoded: Its token ids; of a `PartialTask` those of each option.
        shots: The examples before it, in their order.
        cut_tokens: Tokens that the row's own text lost.
    """

    row: Example
    example: Example
    encoded: list[Encoded]
    shots: tuple[Example, ...]
    cut_tokens: int


def draw_shots(pool: Sequence[Example], example: Example, count: int, seed: int, number: int) -> list[Example]:
    """Examples to stand before a row, in their order: a pure function of the arguments.

    Never the row itself, nor another one with the same prompt, which would give its answer away. A smaller count is
    the beginning of a larger one.

    Args:
        pool: The training split.
        example: The row.
        count: How many; fewer where the pool has no more.
        seed: Of the drawing.
        number: Number of the row in its data; equal numbers draw the same examples.
    """
    return list(islice(_draws(pool, example, seed, number), count))


def _draws(pool: Sequence[Example], example: Example, seed: int, number: int) -> Iterator[Example]:
    """All that may stand before a row, as they are drawn."""
    for index in range(len(pool)):
        shot = pool[permute(index, len(pool), seed, number)]
        if shot.prompt != example.prompt:
            yield shot


def with_shots(task: Task, example: Example, shots: Sequence[Example]) -> Example:
    """`example` with answered examples before its prompt."""
    before = "".join(_shown(task, shot) for shot in shots)
    return replace(example, before=before + example.before) if shots else example


def _shown(task: Task, shot: Example) -> str:
    return shot.prompt + shot.completion + task.separator


def ask(
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    *,
    max_length: int,
    head: str = "lm",
    shots: int = 0,
    pool: Sequence[Example] = (),
    seed: int = 0,
    fixed_shots: bool = False,
    errors: RowErrors | None = None,
) -> list[Asked]:
    """Rows with their examples as token ids.

    Of examples that do not fit into `max_length` with the row and those drawn before, the next ones drawn take the place,
    so that there are fewer than K only where no more fit; where not even the row alone fits, its text is cut, by
    `Task.cut_side`. Both stand in the result, to be counted.

    Args:
        tokenizer: The model's.
        task: What is asked.
        examples: Rows.
        max_length: Tokens of prompt and answer.
        head: "lm", "classification" or "span": the answers of the latter two are no tokens.
        shots: K.
        pool: Examples to draw from.
        seed: Of the drawing.
        fixed_shots: Draw once for all rows, and not for each of them; to score rows is then faster, as they begin alike.
        errors: Takes the rows that are too long even without their text. Default: the first of them raises.

    Raises:
        ValueError: The pool has fewer than K examples, or a row is too long even without its text.
    """
    if shots > len(pool):
        raise ValueError(
            f"{shots} shots of task {task.name!r} need as many training rows; there are {len(pool)}: give `--train` a "
            "larger file, or fewer `--shots`."
        )
    asked = []
    lengths = _ShotLengths(tokenizer, task)
    for number, example in enumerate(examples):
        room = _room(tokenizer, task, example) if head == "lm" else 0
        drawn: list[Example] = []
        if shots:
            left = max_length - room - len(first_ids(tokenizer)) - len(token_ids(tokenizer, example.prompt))
            drawn = lengths.fitting(_draws(pool, example, seed, 0 if fixed_shots else number), shots, left)
        try:
            whole, encoded = _encode_with(tokenizer, task, example, drawn, max_length, room)
        except ValueError as error:
            if errors is None:
                raise
            file, _, line = example.where.rpartition(":")
            errors.add(
                file, int(line) if line.isdigit() else number + 1, str(error).removeprefix(f"{example.where}: ")
            )
            continue
        cut_tokens = max(part.cut_tokens for part in encoded)
        asked.append(Asked(example, whole, encoded, tuple(drawn), cut_tokens))
    return asked


def _encode_with(
    tokenizer: Any, task: Task, example: Example, drawn: list[Example], max_length: int, room: int
) -> tuple[Example, list[Encoded]]:
    """A row with what was drawn for it, as text and as token ids. Where it is longer than was reckoned, `drawn` loses its
    last ones.

    Raises:
        ValueError: The row alone is too long even without its text.
    """
    while True:
        whole = with_shots(task, example, drawn)
        try:
            if isinstance(whole, PartialExample):
                # Of these the option is read, and the ending alone is answered.
                encoded = [encode(tokenizer, context, max_length) for context in _contexts(whole)]
            else:
                encoded = [encode(tokenizer, whole, max_length, room)]
        except ValueError:
            if not drawn:
                raise
        else:
            if not drawn or not any(part.cut_tokens for part in encoded):
                return whole, encoded
        drawn.pop()


class _ShotLengths:
    """How many tokens examples take before a row; each is tokenized once."""

    def __init__(self, tokenizer: Any, task: Task):
        self.tokenizer, self.task = tokenizer, task
        self.found: dict[int, int] = {}

    def fitting(self, draws: Iterable[Example], count: int, tokens: int) -> list[Example]:
        """The first `count` drawn that fit into so many tokens together, each if it does with those before."""
        kept: list[Example] = []
        passed_over = 0
        for shot in draws:
            if len(kept) == count or passed_over > PASSED_OVER:
                break
            length = self._length(shot)
            if length <= tokens:
                kept.append(shot)
                tokens -= length
            else:
                passed_over += 1
        return kept

    def _length(self, shot: Example) -> int:
        key = id(shot)
        if key not in self.found:
            # What it takes behind another one: at its beginning it would meet at other tokens.
            shown = _shown(self.task, shot)
            once, twice = (len(token_ids(self.tokenizer, text)) for text in (shown, shown + shown))
            self.found[key] = twice - once
        return self.found[key]


def answer(
    model: Any,
    tokenizer: Any,
    task: Task,
    asked: Sequence[Asked],
    *,
    head: str = "lm",
    num_beams: int | None = None,
    max_batch_tokens: int | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """What the model says to each row.

    Args:
        model, tokenizer: The model, on its device.
        task: What is asked.
        asked: Rows, of `ask`.
        head: "lm", "classification" or "span": what the model was fine-tuned with.
        num_beams: Of free text. Default: the task's.
        max_batch_tokens: Tokens of a batch, padding included. Default: by the memory there is.
        progress: Show a bar.
    """
    options: dict[str, Any] = {"max_batch_tokens": max_batch_tokens, "progress": progress}
    if isinstance(task, (PartialTask, LastWordTask)):
        # One context for each option, or one for the word; in each a single completion is scored.
        if isinstance(task, PartialTask):
            parts = [(part.prompt_ids, part.choice_ids[0]) for row in asked for part in row.encoded]
        else:
            parts = [(row.encoded[0].prompt_ids, continuation_ids(tokenizer, row.example.completion)) for row in asked]
        prompts, completions = [prompt for prompt, _ in parts], [[completion] for _, completion in parts]
        # Any id will do: padding is masked.
        pad = next((id for id in (tokenizer.pad_token_id, tokenizer.eos_token_id) if id is not None), 0)
        found = [one for (one,) in log_likelihoods(model, prompts, completions, pad_token_id=pad, **options)]
        rest = iter(found)
        scores = [[next(rest).total for _ in row.encoded] for row in asked]
        check_numbers(scores, [row.row.where for row in asked])
        if isinstance(task, LastWordTask):
            return [
                Prediction(row.example.references[0] if word.greedy else OTHER_WORD, None, (word.total,))
                for row, word in zip(asked, found)
            ]
        return [_likeliest(row.example, totals) for row, totals in zip(asked, scores)]
    return predict(
        model,
        tokenizer,
        task,
        [row.example for row in asked],
        [row.encoded[0] for row in asked],
        head=head,
        num_beams=num_beams,
        **options,
    )


def _likeliest(example: Example, scores: list[float]) -> Prediction:
    label = scores.index(max(scores))
    return Prediction(example.choices[label].strip(), label, tuple(scores))


def _contexts(example: PartialExample) -> list[Example]:
    """A row for each option, which stands before the completion: the ending."""
    ending = example.ending
    return [
        replace(
            example,
            after=example.after + choice.removesuffix(ending),
            completion=ending,
            choices=(ending,),
            label=0,
        )
        for choice in example.choices
    ]


def _room(tokenizer: Any, task: Task, example: Example) -> int:
    """Tokens to leave for the answer."""
    if isinstance(task, TextTask) and not isinstance(task, LastWordTask):
        return task.max_new_tokens
    completions = example.choices or (example.completion,)
    return max(len(continuation_ids(tokenizer, completion)) for completion in completions)

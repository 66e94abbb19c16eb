"""The rows of a fine-tuning run: read, encoded, told apart, balanced and packed.

No row is cut, left out or repeated without a count in the metrics and a warning that names the first of them.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.readers import RowErrors
from ..tasks import Example, Task, TextTask
from ..tasks.encoding import Encoded, encode, pack
from ..tasks.rows import read_examples
from ..tasks.scoring import span_labels
from .arguments import FinetuneConfig


logger = logging.get_logger(__name__)

MAX_ROWS_NAMED = 3
Part = Literal["train", "validation", "test"]


@dataclass
class EncodedExamples:
    """Rows of one part of the data, as text and as token ids."""

    examples: list[Example] = field(default_factory=list)
    encoded: list[Encoded] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.examples)

    def sample(self, count: int | None, seed: int) -> "EncodedExamples":
        """So many of them at most, drawn without replacement, in their order."""
        chosen = draw(len(self), count, seed)
        return EncodedExamples([self.examples[i] for i in chosen], [self.encoded[i] for i in chosen])


@dataclass
class Rows:
    """The rows of a run.

    Attributes:
        train: With the answers to learn.
        test: What is scored at the end.
        validation: What evaluation during training looks at.
        counts: By their names in the metrics, how many there are, and were malformed, cut, left out or found twice.
    """

    train: EncodedExamples
    test: EncodedExamples
    validation: EncodedExamples | None = None
    counts: dict[str, int] = field(default_factory=dict)


class RowReader:
    """Reads the rows of a recipe.

    Args:
        config: Where they are, and what happens to those too long.
        task: What is asked of them.
        tokenizer: The model's.
        max_length: Tokens of prompt and completion.
        is_main: Whether this process shows bars and warnings.
    """

    def __init__(self, config: FinetuneConfig, task: Task, tokenizer: Any, max_length: int, is_main: bool = True):
        self.config, self.task, self.tokenizer, self.max_length = config, task, tokenizer, max_length
        self.is_main = is_main
        self.counts: dict[str, int] = {}

    def read(self) -> Rows:
        """All rows of the run.

        Raises:
            ValueError: A part has no rows, or too many that are malformed.
        """
        task, config = self.task, self.config
        if isinstance(task, TextTask) and config.head == "lm" and task.max_new_tokens >= self.max_length:
            raise ValueError(
                f"An answer of `max_new_tokens: {task.max_new_tokens}` leaves nothing of `max_length: {self.max_length}` "
                "for the prompt: lower it in `task_overrides`."
            )
        rows = Rows(self._part("train"), self._part("test"))
        if config.has_validation:
            rows.validation = self._part("validation").sample(config.max_eval_rows, config.split_seed)
            self.counts["validation_rows"] = len(rows.validation)
        known = {example.prompt.strip() for example in rows.train.examples}
        twice = [example.where for example in rows.test.examples if example.prompt.strip() in known]
        self._name(twice, "test rows have the text of a training row (they stay in both)")
        rows.counts = {
            **self.counts,
            "train_rows": len(rows.train),
            "test_rows": len(rows.test),
            "test_rows_in_train": len(twice),
        }
        return rows

    def _part(self, part: Part) -> EncodedExamples:
        errors = RowErrors(self.config.max_bad_rows)
        examples = self._examples(part, errors)
        most = {"train": self.config.max_train_rows, "test": self.config.max_test_rows}.get(part)
        examples = [examples[index] for index in draw(len(examples), most, self.config.split_seed)]
        found = self._encode(part, examples, errors)
        self.counts[f"{part}_rows_malformed"] = errors.count
        self._name(errors.examples, f"malformed {part} rows were passed over", errors.count, between="\n  ")
        if not len(found):
            raise ValueError(
                f"No {part} rows are left of {len(examples)}: the warnings above name what was wrong with them. See "
                f"`max_length` ({self.max_length}), `long_texts` and the shares set apart."
            )
        return found

    def _examples(self, part: Part, errors: RowErrors) -> list[Example]:
        config, task = self.config, self.task
        source, field_map = config.source(part, task), config.field_map(task)
        if source.part != "all" and not source.group_by and "." in source.text_field:
            raise ValueError(
                f"Rows cannot be told apart by `{source.text_field}`, which is inside another field: give `group_by`."
            )
        examples = read_examples(task, source, errors, field_map, progress=self.is_main)
        test = config.source("test", task)
        if part == "validation" and config.validation_fraction and test.part == "test":
            # Both are shares of one file, and these come with the test rows: see `FinetuneConfig.source`.
            apart = read_examples(task, test, RowErrors(None), field_map, progress=self.is_main)
            places = {example.where for example in apart}
            examples = [example for example in examples if example.where not in places]
        return examples

    def _encode(self, part: Part, examples: Sequence[Example], errors: RowErrors) -> EncodedExamples:
        """Token ids of all examples but those that do not fit."""
        config, found = self.config, EncodedExamples()
        long: list[str] = []
        lost: list[str] = []
        room: int | None = None
        if config.head != "lm":
            room = 0  # the answer is no token
        elif part != "train" and isinstance(self.task, TextTask):
            room = self.task.max_new_tokens  # what the model may write, and not what it should
        progress = None if self.is_main else True
        for example in tqdm(examples, desc=f"{self.task.name}, {part}", unit=" rows", disable=progress, leave=False):
            try:
                encoded = encode(self.tokenizer, example, self.max_length, room)
            except ValueError as error:
                file, _, line = example.where.rpartition(":")
                errors.add(file, int(line), str(error).removeprefix(f"{example.where}: ").rstrip("."))
                continue
            if encoded.cut_tokens:
                long.append(example.where)
                if config.long_texts == "error":
                    raise ValueError(
                        f"{example.where}: the text is {encoded.cut_tokens} tokens too long for `max_length: "
                        f"{self.max_length}`. Raise it, or set `long_texts` to cut or skip."
                    )
                if config.long_texts == "skip":
                    continue
            if part == "train" and self._loses_answer(example, encoded):
                lost.append(example.where)
                continue
            found.examples.append(example)
            found.encoded.append(encoded)
        name = "eval" if part == "test" else part
        what = "skipped" if config.long_texts == "skip" else "cut"
        self.counts[f"{name}_rows_{what}"] = len(long)
        done = "were left out" if what == "skipped" else "lost the end of their text"
        self._name(long, f"{part} rows are longer than `max_length: {self.max_length}` and {done}")
        if part == "train" and isinstance(self.task, TextTask) and self.task.context_field:
            self.counts["train_rows_answer_cut"] = len(lost)
            self._name(lost, "training rows were left out: their answer stands in the end that was cut")
        return found

    def _loses_answer(self, example: Example, encoded: Encoded) -> bool:
        """Whether the passage, as cut, no longer has the answer that is to be found in it."""
        task = self.task
        if self.config.head == "span":
            return span_labels(self.tokenizer, example, encoded) is None
        if not isinstance(task, TextTask) or not task.context_field or not encoded.cut_tokens:
            return False
        answer = example.references[0]
        if answer == task.no_answer or answer not in example.text:  # or another field than the one that is cut has it
            return False
        return span_labels(self.tokenizer, example, encoded) is None

    def _name(self, places: Sequence[str], what: str, count: int | None = None, between: str = ", ") -> None:
        """Say how many rows something is the matter with, and which the first ones are."""
        if places and self.is_main:
            shown = between.join(places[:MAX_ROWS_NAMED]) + (", ..." if len(places) > MAX_ROWS_NAMED else "")
            logger.warning(f"{count or len(places)} {what}: {between.strip(', ')}{shown}")


def training_rows(
    config: FinetuneConfig, tokenizer: Any, train: EncodedExamples, max_length: int
) -> list[dict[str, Any]]:
    """The training rows as the collators take them: balanced, and packed, as the recipe says."""
    rows: list[dict[str, Any]] = []
    for example, encoded in zip(train.examples, train.encoded):
        # `input_ids` is what Trainer goes by to group rows of like length.
        row: dict[str, Any] = {"prompt_ids": encoded.prompt_ids, "input_ids": encoded.prompt_ids}
        if config.head == "lm":
            row["completion_ids"] = encoded.completion_ids
        elif config.head == "classification":
            row["labels"] = example.label
        else:
            row["labels"] = span_labels(tokenizer, example, encoded)
        rows.append(row)
    labels = [example.label for example in train.examples]
    if config.class_balance == "weights":
        counts = Counter(labels)
        for row, label in zip(rows, labels):
            row["weight"] = len(rows) / (len(counts) * counts[label])  # 1 on average
    elif config.class_balance == "oversample":
        rows = [rows[index] for index in oversample(labels, config.split_seed)]
    if not config.packing:
        return rows
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    return [
        {"examples": [rows[i] for i in members], "input_ids": range(sum(lengths[i] for i in members))}
        for members in pack(lengths, max_length)
    ]


def draw(total: int, count: int | None, seed: int) -> Sequence[int]:
    """Indices of so many of `total` rows at most, drawn without replacement, in their order."""
    if count is None or count >= total:
        return range(total)
    return sorted(random.Random(seed).sample(range(total), count))


def oversample(labels: Sequence[Any], seed: int) -> list[int]:
    """Indices in which every label is as frequent as the most frequent.

    Its rows as often as they all fit, and then some of them, drawn without replacement, once more.
    """
    of_label: dict[Any, list[int]] = {}
    for index, label in enumerate(labels):
        of_label.setdefault(label, []).append(index)
    most, chooser = max(map(len, of_label.values())), random.Random(seed)
    chosen: list[int] = []
    for indices in of_label.values():
        times, more = divmod(most, len(indices))
        chosen += indices * times + chooser.sample(indices, more)
    return sorted(chosen)

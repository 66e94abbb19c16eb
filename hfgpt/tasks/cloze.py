"""Question answering without questions: `cloze-qa` asks plain passages for a span of their own.

A few hundred questions teach a model what an answer looks like, not where in a passage a question leads; any amount of plain
text can. One sentence of the passage loses a number, a name or some words, and what is left of it, in part, is the question.
A model that was trained so is then fine-tuned on the real ones, by `qa`, whose prompts are the same.

Source: cloze translation of P. Lewis et al. 2019, *Unsupervised Question Answering by Cloze Translation*
(arXiv 1906.04980), with a question word and noise in the place of their translation model.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .base import Example, RowError, TextTask, fill, template_fields, text_of
from .qa import METRICS, PROMPTS


SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
WORD = re.compile(r"\S+")
YEAR = re.compile(r"(1\d|20)\d\d(년\S*)?")
NUMBER = re.compile(r"[-$£€₩]?\d[\d,.]*\S{0,3}")
LETTERS_OR_DIGITS = re.compile(r"\w")
CLAUSE_END = re.compile(r"[,;:()\[\]\"]")
# A sentence that is to lose an answer, and what the question keeps on each side of it, in words.
MIN_SENTENCE_WORDS, MAX_SIDE_WORDS = 5, 12
MAX_NAME_WORDS, MAX_OTHER_WORDS = 5, 4
MIN_EDGE_LETTERS = 4  # of an English answer's first and last word: none begins or ends with "of" or "the"
TRIES = 20


@dataclass(frozen=True)
class ClozeTask(TextTask):
    """Find what was taken out of a sentence of a passage. A row has a passage alone.

    The choice is a pure function of the passage and the row's line: the same passage in another line is asked otherwise.

    Attributes:
        question: Template of a question: what stands `{before}` and `{after}` the answer in its sentence, and `{asks}`.
        asks: Question words for each kind of answer: `year`, `number`, `name` and `other`.
        kept: Share of the sentence's words that the question keeps.
    """

    question: str = "{asks} {before} {after} ?"
    asks: dict[str, list[str]] = field(default_factory=dict)
    kept: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = [kind for kind in ("year", "number", "name", "other") if not self.asks.get(kind)]
        if missing:
            raise ValueError(f"`asks` of task {self.name!r} needs question words for {', '.join(missing)}.")
        if not self.context_field or "question" not in self.prompt_fields:
            raise ValueError(f"`prompt` of task {self.name!r} must hold {{question}} and its `context_field`.")
        unknown = set(template_fields(self.question, f"`question` of task {self.name!r}")) - {
            "asks",
            "before",
            "after",
        }
        if unknown:
            raise ValueError(
                f"`question` of task {self.name!r} takes {{asks}}, {{before}} and {{after}}, got {self.question!r}."
            )
        if not 0 < self.kept <= 1:
            raise ValueError(f"`kept` of task {self.name!r} must be above 0 and at most 1, got {self.kept}.")

    @property
    def fields(self) -> list[str]:
        """The passage: question and answer are made of it."""
        return [self.context_field]

    def example(self, row: Mapping[str, Any], where: str = "") -> Example:
        """See `Task.example`.

        Raises:
            RowError: No sentence of the passage can be asked for.
        """
        context = text_of(row, self.context_field)
        generator = random.Random(f"{where.rpartition(':')[2]} {context}")
        sentences = [
            sentence for sentence in SENTENCE_END.split(context) if len(sentence.split()) >= MIN_SENTENCE_WORDS
        ]
        for _ in range(TRIES if sentences else 0):
            sentence = generator.choice(sentences)
            kind, begin, end = self._answer(sentence, generator)
            answer = sentence[begin:end]
            # The first place of the answer in the passage is the one that is learnt.
            if kind and context.find(answer) == context.find(sentence) + begin:
                question = fill(
                    self.question,
                    asks=generator.choice(self.asks[kind]),
                    before=self._side(sentence[:begin].split()[-MAX_SIDE_WORDS:], generator),
                    after=self._side(sentence[end:].rstrip(".!? ").split()[:MAX_SIDE_WORDS], generator),
                )
                made = {**row, "question": " ".join(question.split()), self.target_field: answer}
                return super().example(made, where)
        raise RowError(f"no sentence of `{self.context_field}` has a number, a name or words to ask for")

    def _side(self, words: list[str], generator: random.Random) -> str:
        return " ".join(word for word in words if generator.random() < self.kept)

    def _answer(self, sentence: str, generator: random.Random) -> tuple[str, int, int]:
        """Kind and characters of an answer, without punctuation at its ends; kind "" where this draw has found none."""
        words = list(WORD.finditer(sentence))
        kind = generator.choice(["number", "name", "other"])
        if kind == "number":
            found = [(word.start(), word.end()) for word in words if NUMBER.fullmatch(word[0])]
        elif kind == "name":
            found = _names(words)
        else:
            first = generator.randrange(len(words))
            last = min(first + generator.randint(1, MAX_OTHER_WORDS), len(words)) - 1
            found = [(words[first].start(), words[last].end())]
            if sentence.isascii() and min(len(words[first][0]), len(words[last][0])) < MIN_EDGE_LETTERS:
                return "", 0, 0
        if not found:
            return "", 0, 0
        begin, end = generator.choice(found)
        while begin < end and not LETTERS_OR_DIGITS.match(sentence[begin]):
            begin += 1
        while end > begin and not LETTERS_OR_DIGITS.match(sentence[end - 1]):
            end -= 1
        if CLAUSE_END.search(sentence, begin, end):
            return "", 0, 0
        if NUMBER.fullmatch(sentence, begin, end):
            kind = "year" if YEAR.fullmatch(sentence, begin, end) else "number"
        return (kind, begin, end) if begin < end else ("", 0, 0)


def _names(words: list[re.Match[str]]) -> list[tuple[int, int]]:
    """Characters of the runs of words with a capital, but for a sentence's first word."""
    found: list[tuple[int, int]] = []
    run: list[re.Match[str]] = []
    for word in [*words[1:], None]:
        if word is not None and word[0][:1].isupper() and len(run) < MAX_NAME_WORDS:
            run.append(word)
            continue
        if run:
            found.append((run[0].start(), run[-1].end()))
        run = [word] if word is not None and word[0][:1].isupper() else []
    return found


CLOZE_QA = {
    language: ClozeTask(
        name="cloze-qa" if language == "en" else f"cloze-qa-{language}",
        prompt=PROMPTS[language],
        target_field="answer",
        context_field="context",
        metrics=METRICS[language],
        max_new_tokens=32,
        question=question,
        asks=asks,
    )
    for language, question, asks in (
        (
            "en",
            "{asks} {before} {after} ?",
            {
                "year": ["When", "In what year", "What year"],
                "number": ["How many", "How much", "What number"],
                "name": ["Who", "What", "Which", "Where"],
                "other": ["What", "Which", "How", "Why", "Where"],
            },
        ),
        (
            "ko",
            "{before} {asks} {after} ?",
            {
                "year": ["언제", "몇 년"],
                "number": ["몇", "얼마"],
                "name": ["누가", "무엇", "어디"],
                "other": ["무엇", "어떤", "어디", "어떻게", "누구"],
            },
        ),
    )
}

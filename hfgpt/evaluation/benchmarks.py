"""The paper's benchmarks and Korean ones, as tasks: where their rows are, and how one of them is asked.

Prompts are those of appendix G of Brown et al. 2020, and K of the few-shot column is table H.1's. Their rows are on the
Hugging Face Hub; where that is not reachable, any file whose rows have the same fields serves (`--data NAME=FILE`).
No data comes with hfgpt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.readers import SourceConfig
from ..tasks.base import ChoiceTask, RowError, Task, TextTask, label_name, text_of, value_of
from ..tasks.rows import FieldMap, is_utf8, lookup
from ..tasks.sentiment import SENTIMENT
from .protocol import LastWordTask, PartialTask


Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A published test.

    Attributes:
        task: How a row is asked.
        raw_fields: Fields of the data set's own rows that are read; where there are choices the answer is the last one.
        adapt: Makes the task's fields of them.
        dataset, config, split: On the Hub.
        train_split: Where examples are drawn from.
        shots: K of the few-shot column of table H.1; of the others what is usual.
        few_shot_task: Where the paper asks with examples otherwise than without.
        train_dataset: Where the training split is not in `dataset`.
        local_file: What a file with such rows is called where the benchmark is published.
        language: Of the prompt.
        other_names: Names that some copies of the data have for `raw_fields`, each with the one it stands for.
    """

    task: Task
    raw_fields: tuple[str, ...]
    adapt: Callable[[Row], dict[str, Any]]
    dataset: str
    config: str | None
    split: str
    train_split: str
    shots: int
    few_shot_task: Task | None = None
    train_dataset: str | None = None
    local_file: str = "its test split as JSONL"
    language: str = "en"
    other_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name on the command line and in reports."""
        return self.task.name

    def task_for(self, shots: int) -> Task:
        """The form with so many examples."""
        return self.few_shot_task if shots and self.few_shot_task is not None else self.task

    def source(self, part: str) -> SourceConfig:
        """Where the "test" or "train" rows are on the Hub."""
        if part == "train" and self.train_dataset is not None:
            return SourceConfig(name=self.name, dataset=self.train_dataset, dataset_split=self.train_split)
        split = self.train_split if part == "train" else self.split
        return SourceConfig(name=self.name, dataset=self.dataset, dataset_config=self.config, dataset_split=split)

    def missing(self, part: str, error: ValueError) -> ValueError:
        """What to say where the Hub does not give the rows."""
        option = "--train" if part == "train" else "--data"
        return ValueError(
            f"{self.name} needs the {part} rows of {self.dataset} on the Hub, which does not give them here; give "
            f"`{option} {self.name}=FILE`, JSONL, CSV or Parquet with the fields {', '.join(self.raw_fields)} "
            f"({self.local_file}). {error}"
        )


@dataclass(frozen=True)
class RawFields(FieldMap):
    """Reads a benchmark's own rows. `fields` and `label_map` are for files that name them, or their answers, otherwise."""

    benchmark: Benchmark | None = field(default=None, kw_only=True)

    def check(self, task: Task) -> None:
        """See `FieldMap.check`; the names are the data set's."""
        assert self.benchmark is not None
        unknown = [name for name in self.fields if name not in self.benchmark.raw_fields]
        if unknown:
            raise ValueError(
                f"`fields` names {', '.join(unknown)}, which {self.benchmark.name} does not have; its fields are "
                f"{', '.join(self.benchmark.raw_fields)}."
            )

    def raw(self, row: Row) -> dict[str, Any]:
        """A row by the data set's names, with its own answer.

        Raises:
            RowError: A field is missing, or has bytes that are no text.
        """
        assert self.benchmark is not None
        values = {self.benchmark.other_names.get(name, name): value for name, value in row.items()}
        values |= {name: lookup(row, own) for name, own in self.fields.items()}
        _check_utf8({self.fields.get(name, name): values.get(name) for name in self.benchmark.raw_fields})
        answer = self.benchmark.raw_fields[-1]
        if answer in values and isinstance(self.benchmark.task, ChoiceTask):
            known = label_name(values[answer], self.label_map)
            if known is not None:
                values[answer] = self.label_map[known]
        return values

    def apply(self, row: Row, task: Task) -> dict[str, Any]:
        """See `FieldMap.apply`."""
        assert self.benchmark is not None
        values = self.benchmark.adapt(self.raw(row))
        # It may have read more than `raw_fields`.
        _check_utf8(values)
        return values


def field_map(
    benchmark: Benchmark, fields: Mapping[str, str] | None = None, label_map: Mapping[str, str] | None = None
) -> RawFields:
    """How the rows of a benchmark are read; see `RawFields`."""
    return RawFields(fields or {}, label_map or {}, benchmark=benchmark)


# --- Rows as published -> fields of the task


def _options(row: Row) -> tuple[str, list[str], Any]:
    """Question, options and index of the answer, of ARC and OpenBookQA: as on the Hub, or as AI2 publishes them."""
    question = value_of(row, "question") if "question" in row else value_of(row, "question_stem")
    choices = row.get("choices")
    if isinstance(question, Mapping):
        question, choices = value_of(question, "stem"), question.get("choices")
    if isinstance(choices, Mapping):
        texts, names = _list_of(choices, "text"), _list_of(choices, "label")
    elif isinstance(choices, list) and all(isinstance(choice, Mapping) for choice in choices):
        texts, names = ([value_of(choice, key) for choice in choices] for key in ("text", "label"))
    else:
        raise RowError(f"field `choices` must hold `text` and `label` of each choice, got {choices!r}")
    answer = value_of(row, "answerKey")
    if answer not in names or len(names) != len(texts):
        raise RowError(f"`answerKey` {answer!r} is not one of {', '.join(map(str, names))}, of {len(texts)} choices")
    return question, texts, names.index(answer)


def _arc(row: Row) -> dict[str, Any]:
    question, choices, answer = _options(row)
    return {"question": question, "choices": choices, "answer": answer}


def _hellaswag(row: Row) -> dict[str, Any]:
    fields = ("activity_label", "ctx", "endings", "label")
    return {name: value_of(row, name) for name in fields}


def _piqa(row: Row) -> dict[str, Any]:
    solutions = [value_of(row, "sol1"), value_of(row, "sol2")]
    return {"goal": value_of(row, "goal"), "solutions": solutions, "label": value_of(row, "label")}


def _winogrande(row: Row) -> dict[str, Any]:
    before, blank, ending = text_of(row, "sentence").strip().partition("_")
    if not blank or not ending.strip():
        raise RowError("`sentence` has no blank, which is `_`, with words behind it")
    options = [value_of(row, "option1"), value_of(row, "option2")]
    return {"before": before.rstrip(), "options": options, "ending": ending, "answer": _from_one(row, "answer")}


def _story_cloze(row: Row) -> dict[str, Any]:
    story = " ".join(text_of(row, f"InputSentence{number}").strip() for number in range(1, 5))
    endings = [value_of(row, f"RandomFifthSentenceQuiz{number}") for number in (1, 2)]
    return {"story": story, "endings": endings, "answer": _from_one(row, "AnswerRightEnding")}


def _race(row: Row) -> dict[str, Any]:
    answer = value_of(row, "answer")
    if not isinstance(answer, str) or len(answer) != 1 or answer not in "ABCD":
        raise RowError(f"`answer` must be A, B, C or D, got {answer!r}")
    values = {name: value_of(row, name) for name in ("article", "question", "options")}
    return {**values, "answer": "ABCD".index(answer)}


def _lambada(row: Row) -> dict[str, Any]:
    context, space, word = text_of(row, "text").strip().rpartition(" ")
    if not space:
        raise RowError("`text` has one word alone")
    return {"context": context, "word": word}


def _trivia_qa(row: Row) -> dict[str, Any]:
    answer = value_of(row, "answer")
    if not isinstance(answer, Mapping):
        raise RowError(f"field `answer` must hold `value` and `aliases`, got {answer!r}")
    answers = [value_of(answer, "value"), *(_list_of(answer, "aliases") if "aliases" in answer else [])]
    return {"question": value_of(row, "question"), "answers": [one for one in answers if one]}


def _squad(row: Row) -> dict[str, Any]:
    answers = value_of(row, "answers")
    if not isinstance(answers, Mapping):
        raise RowError(f"field `answers` must hold a list `text`, got {answers!r}")
    values = {name: value_of(row, name) for name in ("context", "question")}
    title = text_of(row, "title").replace("_", " ")
    return {**values, "title": title, "answers": _list_of(answers, "text")}


def _wmt(row: Row) -> dict[str, Any]:
    """The pair of sentences; of a row that is one itself, that."""
    pair = row.get("translation", row)
    if not isinstance(pair, Mapping):
        raise RowError(f"field `translation` must hold a sentence by language, got {pair!r}")
    return dict(pair)


def _boolq(row: Row) -> dict[str, Any]:
    passage = text_of(row, "passage")
    question = text_of(row, "question").strip().rstrip("?")
    # As the paper has it; not every copy of the data has titles.
    title = str(row.get("title") or "")
    passage = f"{title} -- {passage}" if title and not passage.startswith(title) else passage
    return {"passage": passage, "question": question, "answer": _yes_or_no(value_of(row, "answer"))}


def _kobest_copa(row: Row) -> dict[str, Any]:
    connectives = {"원인": "왜냐하면", "결과": "그래서"}
    question = text_of(row, "question").strip()
    if question not in connectives:
        raise RowError(f"`question` must be {' or '.join(connectives)}, got {question!r}")
    alternatives = [value_of(row, "alternative_1"), value_of(row, "alternative_2")]
    return {
        "premise": value_of(row, "premise"),
        "connective": connectives[question],
        "alternatives": alternatives,
        "label": value_of(row, "label"),
    }


def _kobest_hellaswag(row: Row) -> dict[str, Any]:
    endings = [value_of(row, f"ending_{number}") for number in range(1, 5)]
    return {"context": value_of(row, "context"), "endings": endings, "label": value_of(row, "label")}


def _with_yes_or_no(*names: str) -> Callable[[Row], dict[str, Any]]:
    """The fields as they are, and a `label` of 0 and 1 as no and yes."""

    def adapt(row: Row) -> dict[str, Any]:
        return {**{name: value_of(row, name) for name in names}, "label": _yes_or_no(value_of(row, "label"))}

    return adapt


def _with_polarity(text: str) -> Callable[[Row], dict[str, Any]]:
    """A field of text, and a `label` of 0 and 1 as negative and positive."""
    polarity = {"no": "negative", "yes": "positive"}

    def adapt(row: Row) -> dict[str, Any]:
        label = value_of(row, "label")
        if label not in polarity.values():
            label = polarity[_yes_or_no(label)]
        return {"text": value_of(row, text), "label": label}

    return adapt


def _check_utf8(values: Row) -> None:
    for name, value in values.items():
        if not is_utf8(value):
            raise RowError(f"field `{name}` is not valid UTF-8")


def _list_of(row: Row, name: str) -> list[Any]:
    """A field of a row that holds a list.

    Raises:
        RowError: It is missing, or something else.
    """
    value = value_of(row, name)
    if not isinstance(value, (list, tuple)):
        raise RowError(f"field `{name}` must be a list, got {value!r}")
    return list(value)


def _yes_or_no(value: Any) -> str:
    name = {"1": "yes", "true": "yes", "yes": "yes", "0": "no", "false": "no", "no": "no"}.get(str(value).lower())
    if name is None:
        raise RowError(f"a label must be 0 or 1, true or false, or its name, got {value!r}")
    return name


def _from_one(row: Row, name: str) -> int:
    """The index from 0 of an answer that is counted from 1."""
    value = value_of(row, name)
    if str(value) not in ("1", "2"):
        raise RowError(f"`{name}` must be 1 or 2, got {value!r}")
    return int(value) - 1


# --- The benchmarks

LAMBADA = Benchmark(
    task=LastWordTask(name="lambada", prompt="{context}", cut_side="start", target_field="word"),
    few_shot_task=LastWordTask(
        name="lambada", prompt="Fill in blank:\n{context} ____. ->", cut_side="start", target_field="word"
    ),
    raw_fields=("text",),
    adapt=_lambada,
    # OpenAI's own copy, with its line breaks, is what the paper scores. It has the test split alone.
    dataset="EleutherAI/lambada_openai",
    config="default",
    split="test",
    train_dataset="cimec/lambada",
    train_split="validation",
    shots=15,
    local_file="lambada_test.jsonl",
)
HELLASWAG = Benchmark(
    task=ChoiceTask(
        name="hellaswag",
        prompt="{activity_label}: {ctx}",
        cut_side="start",
        choices_field="endings",
        metrics=["accuracy"],
        separator="\n",
    ),
    raw_fields=("activity_label", "ctx", "endings", "label"),
    adapt=_hellaswag,
    dataset="Rowan/hellaswag",
    config=None,
    split="validation",
    train_split="train",
    shots=20,
    local_file="hellaswag_val.jsonl",
)
PIQA = Benchmark(
    task=ChoiceTask(
        name="piqa",
        prompt="{goal}",
        cut_side="start",
        choices_field="solutions",
        metrics=["accuracy"],
        separator="\n",
    ),
    raw_fields=("goal", "sol1", "sol2", "label"),
    adapt=_piqa,
    dataset="baber/piqa",
    config=None,
    split="validation",
    train_split="train",
    shots=50,
    local_file="valid.jsonl with the labels of valid-labels.lst",
)
WINOGRANDE = Benchmark(
    task=PartialTask(
        name="winogrande",
        prompt="{before}",
        cut_side="start",
        choices_field="options",
        label_field="answer",
        metrics=["accuracy"],
        separator="\n",
    ),
    raw_fields=("sentence", "option1", "option2", "answer"),
    adapt=_winogrande,
    dataset="allenai/winogrande",
    config="winogrande_xl",
    split="validation",
    train_split="train",
    shots=50,
    local_file="dev.jsonl of winogrande_1.1",
)


def _arc_benchmark(name: str, config: str) -> Benchmark:
    return Benchmark(
        task=ChoiceTask(
            name=name,
            prompt="Question: {question}\nAnswer:",
            choices_field="choices",
            label_field="answer",
            normalization="unconditional",
            metrics=["accuracy"],
        ),
        raw_fields=("question", "choices", "answerKey"),
        adapt=_arc,
        dataset="allenai/ai2_arc",
        config=config,
        split="test",
        train_split="train",
        shots=50,
        local_file=f"{config}-Test.jsonl",
    )


OPENBOOKQA = Benchmark(
    task=ChoiceTask(
        name="openbookqa",
        prompt="{question}",
        cut_side="start",
        choices_field="choices",
        label_field="answer",
        normalization="unconditional",
        metrics=["accuracy"],
        separator="\n",
    ),
    raw_fields=("question_stem", "choices", "answerKey"),
    adapt=_arc,
    dataset="allenai/openbookqa",
    config="main",
    split="test",
    train_split="train",
    shots=100,
    local_file="test.jsonl of OpenBookQA-V1",
)


def _race_benchmark(name: str, config: str) -> Benchmark:
    return Benchmark(
        # The paper asks the questions of an article one after the other, with their answers; here each is asked alone.
        task=ChoiceTask(
            name=name,
            prompt="Article:\n{article}\n\nQ: {question}\n\nA:",
            cut_field="article",
            choices_field="options",
            label_field="answer",
            normalization="unconditional",
            metrics=["accuracy"],
        ),
        raw_fields=("article", "question", "options", "answer"),
        adapt=_race,
        dataset="ehovy/race",
        config=config,
        split="test",
        train_split="train",
        shots=10,
    )


STORY_CLOZE = Benchmark(
    task=ChoiceTask(
        name="storycloze",
        prompt="{story}",
        cut_side="start",
        choices_field="endings",
        label_field="answer",
        metrics=["accuracy"],
        separator="\n",
    ),
    raw_fields=(
        *(f"InputSentence{number}" for number in range(1, 5)),
        "RandomFifthSentenceQuiz1",
        "RandomFifthSentenceQuiz2",
        "AnswerRightEnding",
    ),
    adapt=_story_cloze,
    # The Hub's.
    other_names={
        **{f"input_sentence_{number}": f"InputSentence{number}" for number in range(1, 5)},
        **{f"sentence_quiz{number}": f"RandomFifthSentenceQuiz{number}" for number in (1, 2)},
        "answer_right_ending": "AnswerRightEnding",
    },
    # Given out on request only: the Hub has the script that reads the files, not the files.
    dataset="LSDSem/story_cloze",
    config="2016",
    split="test",
    train_split="validation",
    shots=70,
    local_file="cloze_test_test__spring2016.csv, which its authors give out on request",
)
TRIVIA_QA = Benchmark(
    task=TextTask(
        name="triviaqa",
        prompt="Q: {question}\n\nA:",
        target_field="answers",
        metrics=["exact_match", "f1"],
        max_new_tokens=24,
    ),
    raw_fields=("question", "answer"),
    adapt=_trivia_qa,
    dataset="mandarjoshi/trivia_qa",
    config="rc.nocontext",
    split="validation",
    train_split="train",
    shots=64,
)
SQUAD_V2 = Benchmark(
    task=TextTask(
        name="squadv2",
        # Each question is asked alone; the paper asks those of a passage one after the other.
        prompt="Title: {title}\n\nBackground: {context}\n\nQ: {question}\n\nA:",
        cut_field="context",
        target_field="answers",
        no_answer="unanswerable",
        metrics=["f1", "exact_match"],
        max_new_tokens=48,
    ),
    raw_fields=("title", "context", "question", "answers"),
    adapt=_squad,
    dataset="rajpurkar/squad_v2",
    config=None,
    split="validation",
    train_split="train",
    shots=16,
)


def _wmt_benchmark(year: int, pair: str, source: str, target: str) -> Benchmark:
    language = {"en": "English", "fr": "French", "de": "German"}[target]
    common: dict[str, Any] = {
        "name": f"wmt{year}-{source}-{target}",
        "target_field": target,
        "metrics": ["bleu", "chrf"],
        "max_new_tokens": 256,
    }
    return Benchmark(
        task=TextTask(prompt=f"Q: What is the {language} translation of {{{source}}}\nA:", **common),
        few_shot_task=TextTask(prompt=f"{{{source}}} =", separator="\n", **common),
        raw_fields=("translation",),
        adapt=_wmt,
        dataset=f"wmt/wmt{year}",
        config=pair,
        split="test",
        train_split="train",
        shots=64,
        local_file=f'rows {{"translation": {{"{source}": ..., "{target}": ...}}}}, or {source} and {target} themselves',
    )


BOOLQ = Benchmark(
    task=ChoiceTask(
        name="boolq",
        prompt="{passage}\nquestion: {question}?\nanswer:",
        cut_field="passage",
        choices={"no": " no", "yes": " yes"},
        label_field="answer",
    ),
    raw_fields=("passage", "question", "answer"),
    adapt=_boolq,
    dataset="google/boolq",
    config=None,
    split="validation",
    train_split="train",
    shots=32,
    local_file="dev.jsonl",
)


def _kobest(config: str, task: Task, raw_fields: tuple[str, ...], adapt: Callable[[Row], dict[str, Any]]) -> Benchmark:
    return Benchmark(
        task=task,
        raw_fields=raw_fields,
        adapt=adapt,
        dataset="skt/kobest_v1",
        config=config,
        split="test",
        train_split="train",
        shots=10,
        local_file=f"{config}/test.jsonl",
        language="ko",
    )


KOREAN_ANSWERS = {"no": " 아니오", "yes": " 예"}
KOBEST = (
    _kobest(
        "boolq",
        ChoiceTask(
            name="kobest-boolq",
            prompt="{paragraph}\n질문: {question}\n답:",
            cut_field="paragraph",
            choices=KOREAN_ANSWERS,
            metrics=["macro_f1", "accuracy"],
        ),
        ("paragraph", "question", "label"),
        _with_yes_or_no("paragraph", "question"),
    ),
    _kobest(
        "copa",
        ChoiceTask(
            name="kobest-copa",
            prompt="{premise} {connective}",
            cut_field="premise",
            cut_side="start",
            choices_field="alternatives",
            metrics=["accuracy"],
            separator="\n",
        ),
        ("premise", "question", "alternative_1", "alternative_2", "label"),
        _kobest_copa,
    ),
    _kobest(
        "wic",
        ChoiceTask(
            name="kobest-wic",
            prompt="문장 1: {context_1}\n문장 2: {context_2}\n질문: 두 문장에서 '{word}'의 뜻이 같은가?\n답:",
            cut_field="context_2",
            choices=KOREAN_ANSWERS,
            metrics=["macro_f1", "accuracy"],
        ),
        ("word", "context_1", "context_2", "label"),
        _with_yes_or_no("word", "context_1", "context_2"),
    ),
    _kobest(
        "hellaswag",
        ChoiceTask(
            name="kobest-hellaswag",
            prompt="{context}",
            cut_side="start",
            choices_field="endings",
            metrics=["accuracy"],
            separator="\n",
        ),
        ("context", "ending_1", "ending_2", "ending_3", "ending_4", "label"),
        _kobest_hellaswag,
    ),
    _kobest(
        "sentineg",
        replace(SENTIMENT["ko"], name="kobest-sentineg", metrics=["macro_f1", "accuracy"]),
        ("sentence", "label"),
        _with_polarity("sentence"),
    ),
)
NSMC = Benchmark(
    task=replace(SENTIMENT["ko"], name="nsmc"),
    raw_fields=("document", "label"),
    adapt=_with_polarity("document"),
    dataset="e9t/nsmc",
    config=None,
    split="test",
    train_split="train",
    shots=10,
    local_file="ratings_test.txt, renamed ratings_test.tsv",
    language="ko",
)

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        LAMBADA,
        HELLASWAG,
        PIQA,
        WINOGRANDE,
        _arc_benchmark("arc-easy", "ARC-Easy"),
        _arc_benchmark("arc-challenge", "ARC-Challenge"),
        OPENBOOKQA,
        _race_benchmark("race-high", "high"),
        _race_benchmark("race-middle", "middle"),
        STORY_CLOZE,
        TRIVIA_QA,
        SQUAD_V2,
        _wmt_benchmark(14, "fr-en", "fr", "en"),
        _wmt_benchmark(14, "fr-en", "en", "fr"),
        _wmt_benchmark(16, "de-en", "de", "en"),
        _wmt_benchmark(16, "de-en", "en", "de"),
        BOOLQ,
        *KOBEST,
        NSMC,
    )
}

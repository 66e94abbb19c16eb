"""Questions made of passages: each answer is what its sentence lost, at the place that is learnt."""

import random
import re

import pytest

from hfgpt.tasks import ClozeTask, RowError, get_task
from hfgpt.tasks.cloze import SENTENCE_END
from hfgpt.tasks.rows import FieldMap


PASSAGES = {
    "en": (
        "The Normans settled in France. In 1066 their duke William crossed the Channel with 700 ships and won the "
        "Battle of Hastings. He was crowned at Westminster Abbey on Christmas Day, and ordered a survey of the land."
    ),
    "ko": (
        "이순신 장군은 1592년 임진왜란 때 거북선을 만들어 왜군을 크게 무찔렀다. 그는 전라좌수사로 부임한 뒤에 배 24척을 "
        "새로 만들었고, 한산도 앞바다에서 큰 승리를 거두었다."
    ),
}


@pytest.fixture(params=sorted(PASSAGES))
def task(request):
    return get_task("cloze-qa", request.param)


def ask(task, where):
    language = "ko" if task.name.endswith("-ko") else "en"
    return task.example({"context": PASSAGES[language]}, where)


def question_of(example, task):
    before = task.prompt.split("{question}")[0]
    return example.before[len(before) :].splitlines()[0]


def test_the_answer_is_what_its_sentence_lost(task):
    asked = set()
    for line in range(200):
        example = ask(task, f"passages.jsonl:{line}")
        [answer] = example.references
        assert example.completion == f" {answer}"
        sentence = next(part for part in SENTENCE_END.split(example.text) if answer in part)
        assert example.text.find(answer) == example.text.find(sentence) + sentence.find(answer)
        assert re.fullmatch(r"\w(.*\w)?", answer) and not re.search(r"[,;:()]", answer)
        question = question_of(example, task)
        words = {word.rstrip(".") for word in sentence.replace(answer, " ", 1).split()}
        asks = {word for kind in task.asks.values() for each in kind for word in each.split()}
        assert {word.rstrip(".") for word in question.split()} <= words | asks | {"?"}
        asked.add((question, answer))
    assert len(asked) > 50  # other lines, other questions
    assert {answer for _, answer in asked} & {"1066", "700", "1592년", "24척을"}


def test_numbers_names_and_years_are_asked_for_as_such():
    task = get_task("cloze-qa", "en")
    asked = [ask(task, f"f:{line}") for line in range(300)]
    of = {answer: [question_of(e, task) for e in asked if e.references == (answer,)] for answer in ("1066", "700")}
    assert of["1066"] and all(question.startswith(tuple(task.asks["year"])) for question in of["1066"])
    assert of["700"] and all(question.startswith(tuple(task.asks["number"])) for question in of["700"])
    names = [e.references[0] for e in asked if question_of(e, task).startswith("Who")]
    assert names and all(name[0].isupper() for name in names)


def test_a_line_is_asked_the_same_wherever_the_file_is(task):
    assert ask(task, "/data/a.jsonl:7") == ask(task, "/data/a.jsonl:7")
    here, there = ask(task, "/data/a.jsonl:7"), ask(task, "zip://b.jsonl::c.whl:7")
    assert (here.prompt, here.references) == (there.prompt, there.references)


def test_a_row_needs_a_passage_alone(task):
    assert task.fields == ["context"]
    text = PASSAGES["ko" if task.name.endswith("-ko") else "en"]
    example = FieldMap({"context": "body"}).example({"body": text, "context": 3}, task, "f:1")
    assert example.text == text
    with pytest.raises(RowError, match="`body` has a number, a name or words"):
        FieldMap({"context": "body"}).example({"body": "Too short."}, task, "f:2")
    with pytest.raises(RowError, match="no field `body`"):
        FieldMap({"context": "body"}).example({"text": "x"}, task, "f:3")


def test_prompts_are_those_of_the_questions_to_come(task):
    language = "ko" if task.name.endswith("-ko") else "en"
    assert task.prompt == get_task("qa", language).prompt
    assert task.metrics == get_task("qa", language).metrics


def test_no_passage_breaks_it(task):
    """Whatever there is in a passage, it is asked or it is malformed."""
    generator = random.Random(0)
    pieces = [
        "a",
        "B",
        "The",
        ".",
        "? ",
        "! ",
        " ",
        "  ",
        "\n",
        "{x}",
        "}",
        "12",
        "(",
        "é",
        "한국",
        "1999",
        "...",
        "\t",
    ]
    for line in range(500):
        text = "x" + " ".join(generator.choice(pieces) for _ in range(generator.randint(1, 60)))
        try:
            example = task.example({"context": text}, f"f:{line}")
        except RowError:
            continue
        assert example.references[0] in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"asks": {"year": ["when"]}}, "needs question words for number, name, other"),
        ({"prompt": "Passage: {context}\nAnswer:"}, "must hold {question}"),
        ({"context_field": ""}, "`context_field`"),
        ({"kept": 0.0}, "`kept`"),
        ({"question": "{asks} {answer}?"}, "`question` of task 'cloze-qa' takes {asks}, {before} and {after}, got"),
        ({"question": "{asks!r}?"}, "`question` of task 'cloze-qa' takes a field as it is"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(changes, message):
    good = get_task("cloze-qa")
    fields = {name: getattr(good, name) for name in ("name", "prompt", "context_field", "asks", "kept")}
    with pytest.raises(ValueError, match=re.escape(message)):
        ClozeTask(**{**fields, **changes})

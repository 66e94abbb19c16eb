"""Rows of any data set become examples; what cannot be asked is named by file and line, counted, and never guessed at."""

import json
import re

import pytest

from hfgpt.data.readers import RowErrors, SourceConfig
from hfgpt.tasks import ChoiceTask, TextTask, get_task
from hfgpt.tasks.rows import FieldMap, read_examples


SENTIMENT = get_task("sentiment")
QA = get_task("qa")
FREE_QA = get_task("free-qa")


@pytest.fixture
def read(tmp_path):
    """Examples of rows written to a file, and the errors; a text stands for a line as it is."""

    def read(task, rows, *, fields=None, label_map=None, optional=(), limit=None, **source):
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogateescape")
        errors = RowErrors(limit)
        config = SourceConfig(path=str(path), name="test", **source)
        field_map = FieldMap(fields or {}, label_map or {}, optional)
        examples = read_examples(task, config, errors, field_map, progress=False)
        return examples, errors

    return read


GOOD = {"text": "Fine.", "label": "positive"}
PARTS = ("train", "test")


def test_rows_become_examples_that_know_their_line(read, tmp_path):
    examples, errors = read(SENTIMENT, [GOOD, {"text": "Dull.", "label": "negative", "more": 1}])
    assert [(e.prompt, e.completion, e.label, e.references) for e in examples] == [
        ("Review: Fine.\nSentiment:", " positive", 1, ("positive",)),
        ("Review: Dull.\nSentiment:", " negative", 0, ("negative",)),
    ]
    assert [e.where for e in examples] == [f"{tmp_path}/rows.jsonl:1", f"{tmp_path}/rows.jsonl:2"]
    assert errors.count == 0


@pytest.mark.parametrize(
    ("task", "bad", "reason"),
    [
        (SENTIMENT, {"text": "x"}, "no field `label`; the fields are text"),
        (SENTIMENT, {"review": "x", "label": "positive"}, "no field `text`; the fields are review, label"),
        (SENTIMENT, {}, r"no field `text`; the fields are \(none\)"),
        (
            SENTIMENT,
            {"text": "x", "label": "mixed"},
            r"Label 'mixed' in `label` is not one of negative, positive.*label_map",
        ),
        (SENTIMENT, {"text": "x", "label": None}, "Label None in `label` is not one of"),
        (SENTIMENT, {"text": 5, "label": "positive"}, "field `text` must be text, got int"),
        (SENTIMENT, {"text": " \n", "label": "positive"}, "field `text` is empty"),
        (SENTIMENT, {"text": "x\ud800", "label": "positive"}, "field `text` is not valid UTF-8"),
        (FREE_QA, {"question": "q", "context": "a", "answer": ["x", "\udcff"]}, "field `answer` is not valid UTF-8"),
        (SENTIMENT, "{not JSON", "not JSON"),
        (SENTIMENT, '["a list"]', "a row must be a JSON object"),
        (QA, {"question": "q", "context": "a cat", "answer": "dog"}, "the answer 'dog' does not stand in `context`"),
        (QA, {"question": "q", "context": "a cat", "answer": ["a dog", "dog"]}, "the answer 'a dog' does not stand"),
        (QA, {"question": "q", "context": "a cat", "answer": "Cat"}, "the answer 'Cat' does not stand in `context`"),
        (QA, {"question": "q", "context": "a cat", "answer": ""}, "the answer in `answer` is empty"),
        (FREE_QA, {"question": "q", "context": "a cat", "answer": ["cat", "  "]}, "the answer in `answer` is empty"),
        (FREE_QA, {"question": "q", "context": "a cat", "answer": []}, "the answer in `answer` is empty"),
        (
            FREE_QA,
            {"question": "q", "context": "a cat", "answer": 7},
            "`answer` must be a text or a list of texts, got 7",
        ),
        (FREE_QA, {"question": "q", "context": "a cat", "answer": None}, "`answer` must be a text or a list"),
        (
            FREE_QA,
            {"question": None, "context": "a cat", "answer": "x"},
            "field `question` must be text, got NoneType",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_counted_and_passed_over(read, tmp_path, task, bad, reason):
    good = GOOD if task is SENTIMENT else {"question": "q", "context": "a cat", "answer": "cat"}
    examples, errors = read(task, [good, bad, good])
    assert len(examples) == 2 and errors.count == 1
    assert re.match(rf"{re.escape(str(tmp_path))}/rows\.jsonl:2: {reason}", errors.examples[0])


def test_more_bad_rows_than_the_limit_end_the_run(read):
    rows = [GOOD, *[{"text": "x", "label": "mixed"}] * 3]
    assert read(SENTIMENT, rows, limit=3)[1].count == 3
    with pytest.raises(
        ValueError, match=r"More than 2 malformed rows \(`max_bad_rows`\)[\s\S]*rows.jsonl:2: Label 'mixed'"
    ):
        read(SENTIMENT, rows, limit=2)


def test_no_rows_at_all_says_what_was_wrong_with_them(read):
    with pytest.raises(ValueError, match=r"No test rows \(2 malformed\)[\s\S]*rows.jsonl:1: no field `text`"):
        read(SENTIMENT, [{"a": 1}, {"a": 2}])


def test_fields_are_named_by_the_data_set_and_dotted_paths_go_into_them(read):
    squad = {
        "data": {"title": "t", "paragraph": "The cat sat."},
        "question": "Who sat?",
        "answers": {"text": ["cat", "The cat"], "answer_start": [4, 0]},
    }
    nested = {**squad, "answers": [{"text": "cat"}, {"text": "The cat"}]}
    fields = {"context": "data.paragraph", "answer": "answers.text"}
    for row in (squad, nested):
        (example,), _ = read(QA, [row], fields=fields)
        assert example.prompt == "Question: Who sat?\nPassage: The cat sat.\nAnswer:"
        assert (example.text, example.completion, example.references) == ("The cat sat.", " cat", ("cat", "The cat"))

    translation = get_task("translation", "en-ko")
    row = {"translation": {"en": "Open", "ko": "열기"}}
    (example,), _ = read(translation, [row], fields={"en": "translation.en", "ko": "translation.ko"})
    assert (example.prompt, example.completion) == ("English: Open\nKorean:", " 열기")
    # The same rows, the other way round.
    (example,), _ = read(
        get_task("translation", "ko-en"), [row], fields={"en": "translation.en", "ko": "translation.ko"}
    )
    assert (example.prompt, example.completion) == ("한국어: 열기\n영어:", " Open")


def test_a_name_with_a_dot_in_it_comes_before_a_path(read):
    rows = [{"a.b": "flat", "a": {"b": "deep"}, "label": "positive"}]
    assert read(SENTIMENT, rows, fields={"text": "a.b"})[0][0].text == "flat"


@pytest.mark.parametrize("row", [{"answers": {}}, {"answers": []}, {"answers": [{"text": "x"}, {}]}, {"answers": "x"}])
def test_a_path_that_leads_nowhere_is_named(read, row):
    rows = [{"question": "q", "context": "c", **row}, {"question": "q", "context": "c", "answers": {"text": "c"}}]
    _, errors = read(QA, rows, fields={"answer": "answers.text"})
    assert (
        errors.count == 1
        and "no field `answers.text`; the fields are question, context, answers" in errors.examples[0]
    )


def test_a_field_that_the_task_does_not_have_is_refused(read):
    with pytest.raises(
        ValueError, match=r"`fields` names passage, which task 'qa' does not have.*question, context, answer"
    ):
        read(QA, [{}], fields={"passage": "text"})


def test_labels_are_mapped_whatever_their_type(read):
    rows = [
        {"text": "x", "label": 1},
        {"text": "x", "label": "0"},
        {"text": "x", "label": True},
        {"text": "x", "label": 2},
    ]
    label_map = {"1": "positive", "0": "negative", "True": "positive"}
    examples, errors = read(SENTIMENT, rows, label_map=label_map)
    assert [e.label for e in examples] == [1, 0, 1]
    assert errors.count == 1 and "Label 2" in errors.examples[0]


@pytest.mark.parametrize(
    ("label", "label_map", "index"),
    [
        (True, {"true": "positive", "false": "negative"}, 1),
        (False, {"True": "positive", "False": "negative"}, 0),
        ("True", {"true": "positive", "false": "negative"}, 1),
        (1.0, {"1": "positive", "0": "negative"}, 1),
        (0.0, {"1": "positive", "0": "negative"}, 0),
        (1.0, {"1.0": "positive", "1": "negative"}, 1),
        ("1", {"1": "positive"}, 1),
        (0.5, {"0.5": "negative"}, 0),
        (True, {"1": "positive"}, None),
        (1, {"true": "positive"}, None),
        (0.5, {"0": "negative", "1": "positive"}, None),
    ],
)
def test_labels_are_mapped_whatever_the_file_makes_of_them(read, label, label_map, index):
    examples, errors = read(SENTIMENT, [GOOD, {"text": "x", "label": label}], label_map=label_map)
    assert [e.label for e in examples[1:]] == ([] if index is None else [index])
    assert errors.count == (index is None)


TRAINED = {"text": "document", "label": "answer.gold"}


def test_names_a_model_was_trained_with_are_no_promise_about_another_file(read):
    """Rows have the trained names, the task's own, or one of each; where a row has both the trained one counts."""
    rows = [
        {"document": "a", "answer": {"gold": "negative"}},
        {"text": "b", "label": "positive"},
        {"document": "c", "label": "positive"},
        {"document": "d", "text": "other", "answer": {"gold": "negative"}, "label": "positive"},
    ]
    examples, errors = read(SENTIMENT, rows, fields=TRAINED, optional=TRAINED)
    assert [(e.text, e.label) for e in examples] == [("a", 0), ("b", 1), ("c", 1), ("d", 0)] and errors.count == 0
    # Bad ones are told in the row's names.
    bad = [{"text": "a", "label": "odd"}, {"document": " ", "label": "odd"}, {"text": "", "label": "odd"}, {"x": 1}]
    _, errors = read(SENTIMENT, [*bad, GOOD], fields=TRAINED, optional=TRAINED)
    for said, expected in zip(
        errors.examples, ["`label` is not one of", "`document` is empty", "`text` is empty", "no field `document`"]
    ):
        assert expected in said


def test_names_given_for_a_file_are_held_to(read):
    with pytest.raises(ValueError, match=r"\(1 malformed\)[\s\S]*no field `document`; the fields are text, label"):
        read(SENTIMENT, [GOOD], fields={"text": "document"})
    with pytest.raises(ValueError, match=r"\(1 malformed\)[\s\S]*no field `document`"):
        read(SENTIMENT, [GOOD], fields={"text": "document", "label": "gold"}, optional=["label"])


@pytest.mark.parametrize("names", [("text", "label"), ("document", "gold")])
def test_rows_are_divided_by_the_name_that_they_have(read, names):
    rows = [{names[0]: f"review {i}", names[1]: "positive"} for i in range(60)]
    fields = {"text": "document", "label": "gold"}
    train, test = (
        {e.text for e in read(SENTIMENT, rows, fields=fields, optional=fields, text_field="document", **split)[0]}
        for split in ({"test_fraction": 0.5, "part": "train"}, {"test_fraction": 0.5, "part": "test"})
    )
    assert train and test and not train & test and len(train | test) == 60
    # The same rows are in the same part whatever they call it.
    plain, _ = read(SENTIMENT, [{**GOOD, "text": f"review {i}"} for i in range(60)], test_fraction=0.5, part="test")
    assert {e.text for e in plain} == test


def test_a_bad_row_is_told_in_the_names_of_the_data(read):
    rows = [{"text": "x", "verdict": "odd"}, {"text": "x", "verdict": "positive"}]
    _, errors = read(SENTIMENT, rows, fields={"label": "verdict"})
    assert "Label 'odd' in `verdict`" in errors.examples[0] and "`label`" not in errors.examples[0]


def test_a_name_that_the_data_has_for_another_field_is_not_mistaken(read):
    rows = [{"text": "odd", "body": "x"}, {"body": "x"}, {"text": "positive", "body": "x"}]
    _, errors = read(SENTIMENT, rows, fields={"text": "body", "label": "text"})
    assert "Label 'odd' in `text` is" in errors.examples[0] and "no field `text`" in errors.examples[1]


def test_rows_may_bring_their_own_choices(read):
    task = ChoiceTask(name="own", prompt="{text}", choices_field="options")
    rows = [
        {"text": "x", "options": ["yes", "no"], "label": 1},
        {"text": "x", "options": ["yes", "no"], "label": "1"},
        {"text": "x", "options": ["yes ", "no"], "label": "yes"},
        {"text": "x", "options": ["yes", "no"], "label": 2},
        {"text": "x", "options": ["yes", "no"], "label": -1},
        {"text": "x", "options": ["yes", "no"], "label": True},
        {"text": "x", "options": ["yes", "no"], "label": 0.5},
        {"text": "x", "options": ["yes", "no"], "label": None},
        {"text": "x", "options": ["yes"], "label": 0},
        {"text": "x", "options": "yes", "label": 0},
        {"text": "x", "options": ["yes", ""], "label": 0},
    ]
    examples, errors = read(task, rows)
    assert [(e.label, e.choices, e.references) for e in examples] == [
        (1, (" yes", " no"), ("no",)),
        (1, (" yes", " no"), ("no",)),
        (0, (" yes", " no"), ("yes",)),
    ]
    assert errors.count == 8


def test_an_empty_list_of_answers_is_no_answer_where_the_task_has_one(read):
    task = TextTask(
        name="squadv2",
        prompt="{context} {question}",
        target_field="answer",
        context_field="context",
        no_answer="no answer",
    )
    rows = [
        {"question": "q", "context": "a cat", "answer": []},
        {"question": "q", "context": "a cat", "answer": ["cat"]},
    ]
    examples, errors = read(task, rows)
    assert [e.references for e in examples] == [("no answer",), ("cat",)] and errors.count == 0


def test_an_answer_that_stands_in_the_context_is_learnt_and_all_count(read):
    (example,), errors = read(QA, [{"question": "q", "context": "a cat", "answer": ["dog", "cat", "cat", " a cat "]}])
    assert example.references == ("cat", "dog", "a cat") and example.completion == " cat" and errors.count == 0


ROWS = [
    {
        "text": f"review {i}",
        "label": ("negative", "positive")[i % 2],
        "film": i // 4,
        "lang": "enko"[i % 4 // 2 * 2 :][:2],
    }
    for i in range(200)
]


def test_where_part_and_max_rows_hold(read):
    examples, errors = read(SENTIMENT, ROWS, where={"lang": "en"}, max_rows=7)
    assert [e.text for e in examples] == [f"review {i}" for i in (0, 1, 4, 5, 8, 9, 12)]
    assert errors.passed_over == {"`where`": 6} and errors.count == 0

    parts = [
        {e.text for e in read(SENTIMENT, ROWS, group_by="film", test_fraction=0.3, part=part)[0]}
        for part in ("train", "test")
    ]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 200
    films = [{int(text.split()[1]) // 4 for text in part} for part in parts]
    assert not films[0] & films[1] and 5 < len(films[1]) < 25


def test_max_rows_counts_examples_and_not_bad_rows(read):
    rows = [{"text": "x", "label": "mixed"}, GOOD, {"text": ""}, GOOD, GOOD]
    examples, errors = read(SENTIMENT, rows, max_rows=2)
    assert len(examples) == 2 and errors.count == 2


@pytest.mark.parametrize("field", ["group_by", "where"])
def test_a_row_without_the_field_it_is_chosen_by_is_malformed(read, field):
    settings = {"group_by": {"group_by": "film"}, "where": {"where": {"film": 1}}}[field]
    examples, errors = read(SENTIMENT, [{**GOOD, "film": 1}, GOOD], **settings)
    assert len(examples) == 1
    assert errors.count == 1 and "rows.jsonl:2: no field `film`; the fields are text, label" in errors.examples[0]


def test_rows_told_apart_by_their_text_need_one(read):
    rows = [{"question": f"q{i}", "context": "c", "answer": "c"} for i in range(50)]
    with pytest.raises(ValueError, match=r"No test rows \(50 malformed\)[\s\S]*no text in `text`"):
        read(QA, rows, test_fraction=0.5, part="test")
    train, test = (
        {e.before for e in read(QA, rows, test_fraction=0.5, part=part, text_field="question")[0]}
        for part in ("train", "test")
    )
    assert train and test and len(train) + len(test) == 50


def test_rows_are_divided_by_a_field_inside_another_one(read):
    rows = [{"d": {"text": f"review {i}", "film": i // 4}, "label": "positive"} for i in range(80)]
    options = {"fields": {"text": "d.text"}, "test_fraction": 0.5}
    train, test = (
        {e.text for e in read(SENTIMENT, rows, text_field="d.text", part=part, **options)[0]} for part in PARTS
    )
    assert train and test and not train & test and len(train | test) == 80
    flat = [{"text": f"review {i}", "label": "positive"} for i in range(80)]
    assert {e.text for e in read(SENTIMENT, flat, test_fraction=0.5, part="test")[0]} == test

    train, test = (
        {e.text for e in read(SENTIMENT, rows, group_by="d.film", part=part, **options)[0]} for part in PARTS
    )
    films = [{int(text.split()[1]) // 4 for text in part} for part in (train, test)]
    assert all(films) and not films[0] & films[1] and len(train | test) == 80
    examples, _ = read(SENTIMENT, rows, fields={"text": "d.text"}, where={"d.film": [3, 5]})
    assert [e.text for e in examples] == [f"review {i}" for i in (12, 13, 14, 15, 20, 21, 22, 23)]

    with pytest.raises(ValueError, match=r"no text in `d\.body`, by which rows are told apart: no field `d\.body`"):
        read(SENTIMENT, rows, text_field="d.body", part="test", **options)


def test_rows_are_divided_by_what_is_no_text(read):
    pairs = [{"en": f"Open {i}", "ko": f"열기 {i}"} for i in range(40)]
    turned = [dict(reversed(pair.items())) for pair in pairs]
    task, fields = get_task("translation", "en-ko"), {"en": "pair.en", "ko": "pair.ko"}
    found = {}
    for name, given in (("as it is", pairs), ("turned", turned)):
        rows = [{"pair": pair} for pair in given]
        options = {"fields": fields, "text_field": "pair", "test_fraction": 0.5}
        train, test = ({e.text for e in read(task, rows, part=part, **options)[0]} for part in PARTS)
        assert train and test and not train & test and len(train | test) == 40
        found[name] = test
    assert found["as it is"] == found["turned"]
    rows = [{"pair": pair} for pair in pairs] + [{"pair": None}, {"pair": {"en": "\ud800", "ko": "a"}}]
    _, errors = read(task, rows, part="train", **options)
    assert "no text in `pair`" in errors.examples[0] and "`pair` is not valid UTF-8" in errors.examples[1]


@pytest.mark.parametrize("group_by", ["film", None])
def test_a_row_whose_part_cannot_be_told_is_malformed(read, group_by):
    rows = [
        *({**GOOD, "text": f"review {i}", "film": f"film {i}"} for i in range(20)),
        {**GOOD, "text": "\ud800", "film": "\ud800"},
    ]
    examples, errors = read(SENTIMENT, rows, group_by=group_by, test_fraction=0.5, part="train")
    assert examples and errors.count == 1
    assert f"rows.jsonl:21: field `{group_by or 'text'}` is not valid UTF-8" in errors.examples[0]


def test_braces_and_white_space_of_a_row_stay(read):
    (example,), _ = read(SENTIMENT, [{"text": "  {label} {0} }{ ", "label": "positive"}])
    assert example.prompt == "Review:   {label} {0} }{ \nSentiment:"

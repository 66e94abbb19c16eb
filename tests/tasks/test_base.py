"""Tasks as data: prompts, answers and bad rows; YAML tasks; what is kept beside a model."""

import json

import pytest

from hfgpt.tasks import TASKS, ChoiceTask, RowError, TextTask, get_task, load_task, with_changes
from hfgpt.tasks.saved import TASK_FILE, TaskRecord, save_task, saved_task


PAIR = {"a": " a", "b": " b"}


def choice_task(**fields) -> ChoiceTask:
    return ChoiceTask(**{"name": "x", "prompt": "{text}\nIs:", "choices": PAIR, **fields})


def text_task(**fields) -> TextTask:
    return TextTask(**{"name": "x", "prompt": "Q: {question}\nP: {context}\nA:", "target_field": "answer", **fields})


def test_unknown_tasks_and_languages_are_listed():
    with pytest.raises(ValueError, match=r"'sentimental': did you mean `sentiment`\? .*sentiment, translation, qa"):
        get_task("sentimental")
    with pytest.raises(ValueError, match=r"'zzz'\. The tasks are sentiment, translation, qa"):
        get_task("zzz")
    with pytest.raises(ValueError, match="en, ko"):
        get_task("sentiment", "fr")


@pytest.mark.parametrize("name", [name for name in TASKS if name != "cloze-qa"])  # which makes its own questions
def test_each_task_can_be_asked_in_each_language(name):
    for language, task in TASKS[name].items():
        row = dict.fromkeys(task.fields, "Geneva")
        if isinstance(task, ChoiceTask):
            row["label"] = task.labels[1]
        example = task.example(row, "file:1")
        assert "Geneva" in example.prompt and example.prompt == example.before + example.text + example.after
        assert example.completion.startswith(" ") and not example.prompt[-1].isspace()
        assert example.references == (row["label"] if isinstance(task, ChoiceTask) else "Geneva",)
        assert task.metrics and example.where == "file:1" and language


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choice_task(prompt="no place"), r"no field in it, such as \{text\}"),
        (lambda: choice_task(prompt="{text} {text}"), "each field once"),
        (lambda: choice_task(prompt="{} Is:"), "each field once"),
        (lambda: choice_task(prompt="{text"), "is no template"),
        (lambda: choice_task(prompt="{text} Is: "), "ends in white space"),
        (lambda: choice_task(cut_field="review"), r"`cut_field: review`.*\['text'\]"),
        (lambda: choice_task(cut_side="left"), "`cut_side` of task 'x' must be end or start, got 'left'"),
        (lambda: choice_task(choices={"a": " a"}), "at least two `choices`"),
        (lambda: choice_task(choices={}), "`choices` or `choices_field`, one of them"),
        (lambda: choice_task(choices_field="options"), "`choices` or `choices_field`, one of them"),
        (lambda: choice_task(normalization="mean"), "token, unconditional or sum, got 'mean'"),
        (lambda: text_task(context_field="passage"), "`context_field: passage`"),
        (lambda: choice_task(prompt="{text!r}?"), r"`prompt` of task 'x' takes a field as it is.*got '\{text!r\}\?'"),
        (lambda: choice_task(prompt="{text:>9}?"), "`prompt` of task 'x' takes a field as it is"),
        (
            lambda: choice_task(prompt="a } {text}"),
            "`prompt` of task 'x' is no template .*brace that is text is doubled",
        ),
        (lambda: choice_task(choices={"a": " a", "b": ""}), "`choices` of task 'x' has no completion for 'b'"),
        (lambda: choice_task(choices={"a": " a", "b": " "}), "`choices` of task 'x' has no completion for 'b'"),
        (lambda: own_choices(choice=" {option}"), r"`choice` .* must hold \{choice\} once and no other .*\{option\}"),
        (lambda: own_choices(choice=" foo"), r"`choice` of task 'x' must hold \{choice\} once"),
        (lambda: own_choices(choice=" {choice} {choice}"), r"`choice` of task 'x' must hold \{choice\} once"),
        (lambda: own_choices(choice=" {choice!r}"), "`choice` of task 'x' takes a field as it is"),
        (lambda: own_choices(choice=" {choice"), "`choice` of task 'x' is no template"),
        (lambda: choice_task(metrics=[]), "`metrics` of task 'x' is empty"),
        (
            lambda: choice_task(normalization="unconditional", unconditional_prompt=""),
            "`normalization: unconditional` of task 'x' needs an `unconditional_prompt`",
        ),
        (lambda: text_task(completion=" it"), r"must hold \{target\}"),
        (lambda: text_task(completion=" {target} {other}"), r"must hold \{target\} and no other field.*\{other\}"),
        (lambda: text_task(completion=" {target:>9}"), "`completion` of task 'x' takes a field as it is"),
        (lambda: text_task(metrics=[]), "`metrics` of task 'x' is empty"),
        (lambda: text_task(num_beams=0), "`num_beams` of task 'x' must be at least 1, got 0"),
        (lambda: text_task(max_new_tokens=0), "`max_new_tokens` of task 'x' must be at least 1, got 0"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Choices


def test_a_row_becomes_an_example():
    example = choice_task().example({"text": "a film", "label": "b", "other": 1}, "f:2")
    assert (example.before, example.text, example.after) == ("", "a film", "\nIs:")
    assert (example.completion, example.choices, example.label) == (" b", (" a", " b"), 1)
    assert (example.references, example.where) == (("b",), "f:2")


def test_labels_need_not_be_texts():
    task = choice_task(choices={"0": " no", "1": " yes"})
    assert task.example({"text": "a", "label": 1}).completion == " yes"


@pytest.mark.parametrize(
    ("names", "label", "index"),
    [
        (("false", "true"), True, 1),
        (("false", "true"), "True", 1),
        (("False", "True"), False, 0),
        (("0", "1"), 1.0, 1),
        (("1.0", "1"), 1.0, 0),
        (("1.5", "1"), 1.5, 0),
        (("0", "1"), True, None),
        (("0", "1"), 0.5, None),
    ],
)
def test_a_label_is_a_name_whatever_its_file_makes_of_it(names, label, index):
    task = choice_task(choices={name: f" {name}" for name in names})
    if index is not None:
        assert task.example({"text": "a", "label": label}).label == index
        return
    with pytest.raises(RowError, match=f'`label_map`, such as .*: "{names[0]}"'):
        task.example({"text": "a", "label": label})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "a"}, "no field `text`; the fields are label"),
        ({"text": "a"}, "no field `label`; the fields are text"),
        ({"text": "  ", "label": "a"}, "field `text` is empty"),
        ({"text": 5, "label": "a"}, "field `text` must be text, got int"),
        ({"text": None, "label": "a"}, "field `text` must be text, got NoneType"),
        ({"text": "a", "label": "c"}, r"Label 'c' in `label` is not one of a, b: map it with `label_map`"),
        ({}, r"the fields are \(none\)"),
    ],
)
def test_a_bad_row_says_why(row, message):
    with pytest.raises(RowError, match=message):
        choice_task().example(row)


def own_choices(**fields) -> ChoiceTask:
    return choice_task(choices={}, choices_field="endings", label_field="gold", **fields)


@pytest.mark.parametrize("gold", [1, "1", "it ends", " it ends "])
def test_a_row_brings_its_own_choices(gold):
    row = {"text": "a film", "endings": ["it goes on", " it ends "], "gold": gold}
    example = own_choices().example(row)
    assert example.choices == (" it goes on", " it ends")
    assert (example.completion, example.label, example.references) == (" it ends", 1, ("it ends",))
    quoted = own_choices(choice=' "{choice}"').example(row)
    assert quoted.completion == ' "it ends"' and quoted.references == ("it ends",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gold": 2}, "its index from 0 to 1, got 2"),
        ({"gold": -1}, "got -1"),
        ({"gold": True}, "got True"),
        ({"gold": None}, "got None"),
        ({"gold": "elsewhere"}, "got 'elsewhere'"),
        ({"endings": ["one"]}, "a list of two or more texts"),
        ({"endings": "one two"}, "a list of two or more texts"),
        ({"endings": ["one", ""]}, "a list of two or more texts"),
    ],
)
def test_bad_choices_of_a_row_say_why(changes, message):
    with pytest.raises(RowError, match=message):
        own_choices().example({"text": "a", "endings": ["one", "two"], "gold": 0, **changes})


# Text


def test_the_first_of_several_answers_is_learnt_and_all_count():
    row = {"question": "Who?", "context": "Mary", "answer": [" Mary ", "Shelley", "Mary"]}
    example = text_task().example(row)
    assert example.completion == " Mary" and example.references == ("Mary", "Shelley")
    assert (example.choices, example.label) == ((), None)


def test_an_extractive_answer_stands_in_its_passage():
    task = text_task(context_field="context")
    row = {"question": "Who?", "context": "Mary Shelley", "answer": ["the author", "Shelley"]}
    example = task.example(row)
    assert example.completion == " Shelley" and example.references == ("Shelley", "the author")
    with pytest.raises(RowError, match="'the author' does not stand in `context`"):
        task.example({**row, "answer": "the author"})


def test_an_empty_answer_is_malformed_unless_there_may_be_none():
    row = {"question": "Who?", "context": "Mary"}
    for answer in ("", " ", [], ["Mary", ""]):
        with pytest.raises(RowError, match="the answer in `answer` is empty"):
            text_task().example({**row, "answer": answer})
    assert text_task(no_answer="unknown").example({**row, "answer": []}).completion == " unknown"
    for answer in (5, [5], None):
        with pytest.raises(RowError, match="must be a text or a list of texts"):
            text_task().example({**row, "answer": answer})


def test_the_field_to_cut_is_the_last_one_or_the_one_named():
    row = {"question": "Who?", "context": "Mary", "answer": "Mary"}
    last = text_task().example(row)
    assert (last.before, last.text, last.after) == ("Q: Who?\nP: ", "Mary", "\nA:")
    first = text_task(cut_field="question").example(row)
    assert (first.before, first.text, first.after) == ("Q: ", "Who?", "\nP: Mary\nA:")


def test_the_side_to_cut_goes_with_the_row():
    row = {"text": "a film", "label": "b", "question": "Who?", "context": "Mary", "answer": "Mary"}
    for make in (choice_task, text_task):
        assert make().example(row).cut_side == "end"
        assert make(cut_side="start").example(row).cut_side == "start"


def test_braces_in_a_row_are_text():
    row = {"question": "{context} {0}", "context": "}{", "answer": "{x}"}
    example = text_task().example(row)
    assert example.prompt == "Q: {context} {0}\nP: }{\nA:" and example.completion == " {x}"


def test_braces_in_a_template_are_doubled_and_a_name_may_have_a_dot():
    row = {"text": "a {film}", "d.b": "Mary", "answer": "x"}
    task = text_task(prompt='JSON {{text}} {d.b} {{"a": {text}}}', completion=" {{{target}}}")
    example = task.example(row)
    assert (example.before, example.text, example.after) == ('JSON {text} Mary {"a": ', "a {film}", "}")
    assert task.fields == ["d.b", "text", "answer"] and example.completion == " {x}"
    first = text_task(prompt="{{text}} {text}{{", cut_field="text").example(row)
    assert (first.before, first.text, first.after) == ("{text} ", "a {film}", "{")
    quoted = own_choices(choice=" {{{choice}}}").example({"text": "a", "endings": ["b", "c"], "gold": 1})
    assert quoted.choices == (" {b}", " {c}")


@pytest.mark.parametrize("cut_field", ["", "question"])
@pytest.mark.parametrize("prompt", ["Q: {question}\nP: {context}", "Q: {question}\nP: {context}\nA:"])
def test_a_prompt_never_ends_in_white_space(prompt, cut_field):
    """The completion brings its own, and two spaces are another token."""
    row = {"question": " Who? ", "context": " Mary \n\u3000", "answer": "Mary"}
    for task in (text_task(prompt=prompt, cut_field=cut_field), choice_task(prompt=prompt, cut_field=cut_field)):
        example = task.example({**row, "label": "a"})
        assert example.prompt == prompt.format(**row).rstrip() == example.before + example.text + example.after
        # Inside, the row's own white space stays.
        assert "Q:  Who? \nP:  Mary" in example.prompt


# YAML


YAML = """
kind: choice
metrics: [accuracy]
choices_field: options
languages:
  en:
    prompt: "{premise} Question: {hypothesis} True or false? Answer:"
    choices_field: ""
    choices: {entailment: " true", contradiction: " false"}
  ko:
    name: nli-ko
    prompt: "{premise} 질문: {hypothesis}"
"""


def test_a_task_from_yaml(tmp_path):
    path = tmp_path / "nli.yaml"
    path.write_text(YAML, encoding="utf-8")
    tasks = load_task(path)
    assert list(tasks) == ["en", "ko"] and [task.name for task in tasks.values()] == ["nli", "nli-ko"]
    assert get_task(str(path), "ko") == tasks["ko"]
    assert tasks["en"].labels == ["entailment", "contradiction"] and tasks["en"].metrics == ["accuracy"]
    assert tasks["ko"].choices_field == "options" and tasks["ko"].labels == []
    example = tasks["en"].example({"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"})
    assert example.prompt == "It rains. Question: It is wet. True or false? Answer:"
    with pytest.raises(ValueError, match="en, ko"):
        get_task(str(path), "fr")


def test_a_text_task_from_yaml(tmp_path):
    path = tmp_path / "summary.yml"
    path.write_text(
        'kind: text\nnum_beams: 2\ncut_side: start\nlanguages:\n  en: {prompt: "{text}\\nTL;DR:"}\n', encoding="utf-8"
    )
    task = get_task(str(path))
    assert isinstance(task, TextTask) and (task.num_beams, task.name, task.target_field) == (2, "summary", "target")
    assert task.cut_side == "start"


def test_labels_that_yaml_reads_as_numbers_are_those_of_the_rows(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text('kind: choice\nlanguages: {en: {prompt: "{text}?", choices: {0: " no", 1: " yes"}}}')
    task = get_task(str(path))
    assert [task.example({"text": "a", "label": label}).completion for label in (1, "0")] == [" yes", " no"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: list\nlanguages: {en: {prompt: '{a}'}}", "`kind` .* must be one of choice, text, cloze, got 'list'"),
        ("kind: text", "`languages` .* must map"),
        ("kind: text\nlanguages: {en: 5}", r"`languages\.en` .* must be a mapping"),
        ("kind: text\nlanguages: {en: {promt: '{a}'}}", "prompt"),
        ("kind: text\nlanguages: {en: {prompt: '{a}', num_beams: many}}", "num_beams"),
        (
            "kind: text\nlanguages: {en: {prompt: '{a}', cut_side: left}}",
            "`cut_side` .* must be one of 'end', 'start'",
        ),
        (
            "kind: text\nlanguages: {no: {prompt: '{a}'}}",
            "A key of `languages` in .* got bool False.*put it in quotes",
        ),
        (
            "kind: choice\nlanguages: {en: {prompt: '{a}', choices: {no: ' no', yes: ' yes'}}}",
            "A key of `choices` in .*, language en must be str, got bool False.*put it in quotes",
        ),
        (
            "kind: choice\nlanguages: {en: {prompt: '{a}', choices: {'0': no, '1': yes}}}",
            "`choices` in .*, language en, `0` must be str, got bool False.*put it in quotes",
        ),
        ("kind: text\nlanguages: {en: {prompt: 'none'}}", "no field in it"),
    ],
)
def test_a_yaml_that_is_no_task_says_why(tmp_path, text, message):
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_task(path)


def test_changes_are_checked():
    task = get_task("sentiment")
    changed = with_changes(
        task, {"prompt": "{text} It was", "choices": {"negative": " bad", "positive": " good"}}, "r"
    )
    assert changed.prompt == "{text} It was" and changed.metrics == task.metrics
    assert with_changes(task, {}, "r") == task
    with pytest.raises(ValueError, match=r"`?normalisation`?.*normalization"):
        with_changes(task, {"normalisation": "sum"}, "r")
    with pytest.raises(ValueError, match="num_beams"):
        with_changes(get_task("qa"), {"num_beams": "four"}, "r")
    with pytest.raises(ValueError, match="ends in white space"):
        with_changes(task, {"prompt": "{text} "}, "r")


# task.json


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (get_task("sentiment", "ko"), "choice"),
        (get_task("qa"), "text"),
        (get_task("cloze-qa", "ko"), "cloze"),
        (own_choices(choice=" {choice}."), "choice"),
    ],
)
def test_what_is_kept_beside_a_model_comes_back(tmp_path, task, kind):
    record = TaskRecord(
        task, kind, "ko", head="classification", max_length=64, fields={"text": "document"}, label_map={"0": "부정"}
    )
    save_task(record, tmp_path)
    assert saved_task(tmp_path) == record
    assert "부정" in (tmp_path / TASK_FILE).read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [TASK_FILE]


def test_a_model_without_a_task_has_none(tmp_path):
    assert saved_task(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: "{",
        lambda values: "[]",
        lambda values: json.dumps({**values, "head": "regression"}),
        lambda values: json.dumps({**values, "kind": "list"}),
        lambda values: json.dumps({**values, "shots": 3}),
        lambda values: json.dumps({**values, "task": {**values["task"], "colour": "red"}}),
        lambda values: json.dumps({key: value for key, value in values.items() if key != "task"}),
    ],
)
def test_a_damaged_record_is_named(tmp_path, damage):
    save_task(TaskRecord(get_task("sentiment"), "choice", "en"), tmp_path)
    path = tmp_path / TASK_FILE
    path.write_text(damage(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{TASK_FILE} cannot be read"):
        saved_task(tmp_path)

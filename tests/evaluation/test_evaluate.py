"""Models scored on rows: fine-tuned ones as they were fine-tuned, others zero- and few-shot, nothing left out in silence."""

import json
import math
from dataclasses import replace

import pytest
import torch
from converted_models import POSITIONS, by_hand, read_jsonl, save_pair
from helpers import make_reviews, write_jsonl
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hfgpt import GPT3Config, GPT3ForQuestionAnswering, GPT3ForSequenceClassification
from hfgpt.config import from_mapping
from hfgpt.data.corpus import CorpusConfig, prepare
from hfgpt.data.executors import ExecutorConfig
from hfgpt.data.readers import RowErrors, SourceConfig
from hfgpt.evaluation.evaluate import EvaluateOptions, evaluate, evaluate_from, is_correct
from hfgpt.generation import load
from hfgpt.tasks import get_task
from hfgpt.tasks.rows import FieldMap, read_examples
from hfgpt.tasks.saved import TaskRecord, save_task
from hfgpt.tasks.scoring import Prediction, generate_texts
from hfgpt.training.arguments import FinetuneConfig


REVIEWS = [
    {"text": row["text"], "label": "positive" if row["verdict"] == "fresh" else "negative"}
    for row in make_reviews(40, seed=1)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `save_pair` leaves: gpt2/, and gpt3/ with the same weights."""
    folder = tmp_path_factory.mktemp("models")
    save_pair(folder)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """The model as transformers' GPT-2, its tokenizer, and as gpt3."""
    gpt3, tokenizer = load(folder / "gpt3", device="cpu")
    return AutoModelForCausalLM.from_pretrained(folder / "gpt2").eval(), tokenizer, gpt3


@pytest.fixture
def reviews(tmp_path):
    return write_jsonl(tmp_path / "reviews.jsonl", REVIEWS)


def options(folder, **changes):
    return EvaluateOptions(**{"model": str(folder / "gpt3"), "device": "cpu", "resamples": 100, **changes})


def fine_tuned(folder, name, **changes):
    """A copy of the model that says it was fine-tuned for sentiment in words of its own."""
    copy = folder / name
    if not copy.exists():
        copy.mkdir()
        for file in (folder / "gpt3").iterdir():
            (copy / file.name).symlink_to(file)
        task = replace(
            get_task("sentiment", "ko"), prompt="{text} It was", choices={"negative": " bad", "positive": " good"}
        )
        record = {
            "head": "lm",
            "max_length": 60,
            "fields": {"text": "review"},
            "label_map": {"5": "positive", "1": "negative"},
        }
        save_task(TaskRecord(task, "choice", "ko", **{**record, **changes}), copy)
    return copy


# In a notebook


def test_a_loaded_model_is_scored_on_rows_examples_and_files_alike(pair, reviews):
    gpt2, tokenizer, gpt3 = pair
    task = get_task("sentiment")
    found = [
        evaluate(gpt3, tokenizer, "sentiment", data, resamples=50, progress=False).results[0]
        for data in (REVIEWS, [task.example(row) for row in REVIEWS], reviews, SourceConfig(path=str(reviews)))
    ]
    right = 0
    for row in REVIEWS:
        scores = {}
        for label in ("negative", "positive"):
            total, tokens, _ = by_hand(gpt2, tokenizer, f"Review: {row['text']}\nSentiment:", f" {label}")
            scores[label] = total / tokens
        right += max(scores, key=scores.__getitem__) == row["label"]
    for result in found:
        assert result.rows == len(REVIEWS) and result.shots == 0 and result.language == "en"
        assert result.metrics["accuracy"].value == pytest.approx(right / len(REVIEWS))
        assert result.metrics["accuracy"].low <= right / len(REVIEWS) <= result.metrics["accuracy"].high
        positive = sum(row["label"] == "positive" for row in REVIEWS) / len(REVIEWS)
        assert result.baselines["majority"]["accuracy"].value == pytest.approx(max(positive, 1 - positive))
        assert result.baseline_rows == "test"


def test_examples_come_from_the_training_rows_and_so_do_baselines(pair, reviews):
    _, tokenizer, gpt3 = pair
    train = [{"text": f"Film {n} was dull.", "label": "negative"} for n in range(6)]
    result = evaluate(gpt3, tokenizer, "sentiment", reviews, shots=(0, 2), train=train, resamples=50, progress=False)
    zero, two = result.results
    assert (zero.shots, two.shots) == (0, 2)
    assert "shots" not in zero.predictions[0] and len(two.predictions[0]["shots"]) == 2
    assert zero.predictions[0]["prompt"] == two.predictions[0]["prompt"]
    assert zero.baseline_rows == "train"
    negative = sum(row["label"] == "negative" for row in REVIEWS) / len(REVIEWS)
    assert two.baselines["majority"]["accuracy"].value == pytest.approx(negative)


def test_shots_need_training_rows(pair, reviews):
    _, tokenizer, gpt3 = pair
    with pytest.raises(ValueError, match="`--train FILE`"):
        evaluate(gpt3, tokenizer, "sentiment", reviews, shots=(1,), progress=False)


def test_a_task_of_ones_own(pair):
    _, tokenizer, gpt3 = pair
    task = replace(get_task("free-qa"), max_new_tokens=4, num_beams=1)
    rows = [{"question": "Who?", "context": "Mary wrote it.", "answer": ["Mary", "Shelley"]}] * 3
    result = evaluate(gpt3, tokenizer, task, rows, resamples=20, progress=False).results[0]
    assert set(result.metrics) == {"f1", "exact_match"} and set(result.baselines) == {"copy", "constant"}
    assert result.predictions[0]["references"] == ["Mary", "Shelley"]
    assert "choices" not in result.predictions[0] and result.predictions[0]["where"] == "row:1"


def test_answers_are_right_but_for_case_articles_and_punctuation():
    example = get_task("free-qa").example({"question": "Who?", "context": "It.", "answer": ["Mary Shelley", "Mary"]})
    assert is_correct(example, Prediction("the mary shelley."))
    assert not is_correct(example, Prediction("Shelley"))


# As it was fine-tuned


def test_a_fine_tuned_model_is_asked_in_its_own_words(folder, tmp_path, pair):
    gpt2, tokenizer, _ = pair
    model = fine_tuned(folder, "tuned")
    rows = write_jsonl(
        tmp_path / "rows.jsonl", [{"review": "A warm film.", "label": 5}, {"review": "A dull one.", "label": 1}]
    )
    for tasks in ([], ["sentiment"], ["sentiment-ko"]):
        done = evaluate_from(options(folder, model=str(model), tasks=tasks, data=[str(rows)])).results[0]
        assert (done.task, done.language, done.rows) == ("sentiment-ko", "ko", 2)
        for prediction, text in zip(done.predictions, ("A warm film.", "A dull one.")):
            assert prediction["prompt"] == f"{text} It was" and prediction["choices"] == [" bad", " good"]
            total, tokens, _ = by_hand(gpt2, tokenizer, f"{text} It was", " good")
            assert prediction["scores"][1] == pytest.approx(total / tokens, abs=1e-5)
        assert [prediction["references"] for prediction in done.predictions] == [["positive"], ["negative"]]


def test_another_task_or_language_is_asked_by_its_default(folder, reviews):
    model = fine_tuned(folder, "tuned")
    done = evaluate_from(options(folder, model=str(model), tasks=["sentiment"], language="en", data=[str(reviews)]))
    assert done.results[0].predictions[0]["prompt"].startswith("Review: ")
    assert done.results[0].cut_rows == 0


def test_texts_are_cut_where_fine_tuning_cut_them_and_named(folder, tmp_path):
    model = fine_tuned(folder, "tuned")
    rows = [{"review": "A dull film. " * count, "label": 1} for count in (1, 12, 1, 60)]
    done = evaluate_from(options(folder, model=str(model), data=[str(write_jsonl(tmp_path / "rows.jsonl", rows))]))
    result = done.results[0]
    assert result.cut_rows == 2 and [where.split(":")[-1] for where in result.cut_examples] == ["2", "4"]
    assert [prediction.get("cut_tokens", 0) > 0 for prediction in result.predictions] == [False, True, False, True]
    assert "2 of 4 texts were longer than the context" in "\n".join(done.notes())
    assert "rows.jsonl:2; " in "\n".join(done.notes())


def test_the_command_lines_fields_and_labels_come_before_the_models_own(folder, tmp_path):
    model = fine_tuned(folder, "tuned")
    rows = write_jsonl(
        tmp_path / "rows.jsonl", [{"t": "A warm film.", "label": "up"}, {"t": "Dull.", "label": "down"}]
    )
    done = evaluate_from(
        options(
            folder,
            model=str(model),
            data=[str(rows)],
            fields={"text": "t"},
            label_map={"up": "positive", "down": "negative"},
        )
    )
    assert [p["references"] for p in done.results[0].predictions] == [["positive"], ["negative"]]


def test_a_file_with_the_tasks_own_names_is_read_whatever_names_training_had(folder, reviews):
    model = fine_tuned(folder, "tuned")
    done = evaluate_from(options(folder, model=str(model), data=[str(reviews)])).results[0]
    assert (done.rows, done.bad_rows) == (len(REVIEWS), 0)
    assert done.predictions[0]["prompt"] == f"{REVIEWS[0]['text']} It was"
    with pytest.raises(ValueError, match="no field `t`"):
        evaluate_from(options(folder, model=str(model), data=[str(reviews)], fields={"text": "t"}))


def task_file(path, name="nli", languages=("en", "ko")):
    tasks = {
        one: {"prompt": f"{{text}} {one}?", "choices": {"negative": " no", "positive": " yes"}} for one in languages
    }
    path.write_text(json.dumps({"name": name, "kind": "choice", "languages": tasks}))
    return path


def test_a_model_that_was_fine_tuned_for_a_task_file_is_known_by_that_file(folder, reviews, tmp_path):
    file = task_file(tmp_path / "mine.yaml")
    task = replace(get_task(str(file), "ko"), prompt="{text} As trained:")
    model = fine_tuned(folder, "file-tuned", fields={})
    save_task(TaskRecord(task, "choice", "ko", max_length=60), model)
    asked = options(folder, model=str(model), data=[str(reviews)], max_rows=2)
    for tasks, language in (([str(file)], None), ([str(file)], "ko"), (["nli"], None), ([], None)):
        done = evaluate_from(replace(asked, tasks=tasks, language=language)).results[0]
        assert done.predictions[0]["prompt"] == f"{REVIEWS[0]['text']} As trained:" and done.language == "ko"
    # Of another language, or another name, it is not.
    other = task_file(tmp_path / "other.yaml", "other")
    for tasks, language in ((str(file), "en"), (str(other), "ko")):
        done = evaluate_from(replace(asked, tasks=[tasks], language=language)).results[0]
        assert done.predictions[0]["prompt"] == f"{REVIEWS[0]['text']} {language}?"
    with pytest.raises(ValueError, match="was fine-tuned for nli in 'ko': leave `--lang en` out"):
        evaluate_from(replace(asked, language="en"))


def test_another_language_needs_no_name_of_the_task(folder, reviews):
    model = fine_tuned(folder, "tuned")
    done = evaluate_from(options(folder, model=str(model), language="en", data=[str(reviews)], max_rows=2))
    assert (done.results[0].task, done.results[0].language) == ("sentiment", "en")
    assert done.results[0].predictions[0]["prompt"].startswith("Review: ")


def small(**fields):
    return GPT3Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=POSITIONS, **fields
    )


def test_a_classification_head_is_used(folder, pair, reviews):
    _, tokenizer, _ = pair
    model = folder / "classifier"
    torch.manual_seed(0)
    classifier = GPT3ForSequenceClassification(
        small(vocab_size=len(tokenizer), num_labels=2, pad_token_id=tokenizer.pad_token_id)
    ).eval()
    classifier.save_pretrained(model)
    tokenizer.save_pretrained(model)
    save_task(TaskRecord(get_task("sentiment"), "choice", "en", head="classification"), model)
    done = evaluate_from(options(folder, model=str(model), data=[str(reviews)], max_rows=5)).results[0]
    for row, prediction in zip(REVIEWS, done.predictions):
        ids = tokenizer(f"Review: {row['text']}\nSentiment:", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = torch.log_softmax(classifier(input_ids=ids).logits[0], -1)
        assert prediction["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="classification head"):
        evaluate_from(options(folder, model=str(model), data=[str(reviews)], shots=["1"], train=[str(reviews)]))
    with pytest.raises(ValueError, match=r"has a classification head .* nothing else"):
        evaluate_from(options(folder, model=str(model), tasks=["qa"], data=[str(reviews)]))


def test_a_span_head_is_used(folder, pair, tmp_path):
    _, tokenizer, _ = pair
    model = folder / "reader"
    torch.manual_seed(0)
    GPT3ForQuestionAnswering(small(vocab_size=len(tokenizer))).save_pretrained(model)
    tokenizer.save_pretrained(model)
    save_task(TaskRecord(get_task("qa"), "text", "en", head="span"), model)
    row = {"question": "Who wrote it?", "context": "Mary Shelley wrote it in 1816.", "answer": "Mary Shelley"}
    rows = write_jsonl(tmp_path / "rows.jsonl", [row, {**row, "answer": "Percy"}])
    done = evaluate_from(options(folder, model=str(model), data=[str(rows)])).results[0]
    assert done.predictions[0]["prediction"] in row["context"]
    assert done.rows == 1 and done.bad_rows == 1
    assert "does not stand in `context`" in done.bad_examples[0] and ":2:" in done.bad_examples[0]
    assert "random_span" in done.baselines


def test_an_adapter_folder_brings_its_base_and_its_task(folder, pair, tmp_path):
    gpt2, tokenizer, _ = pair
    adapter = folder / "adapter"
    base = AutoModelForCausalLM.from_pretrained(folder / "gpt3")
    torch.manual_seed(0)
    model = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    model.peft_config["default"].base_model_name_or_path = str(folder / "gpt3")
    model.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    save_task(TaskRecord(get_task("sentiment"), "choice", "en"), adapter)
    rows = write_jsonl(tmp_path / "rows.jsonl", REVIEWS[:2])
    prediction = evaluate_from(options(folder, model=str(adapter), data=[str(rows)])).results[0].predictions[0]
    before, after = (tokenizer.encode(text) for text in (f"Review: {REVIEWS[0]['text']}\nSentiment:", " negative"))
    with torch.no_grad():
        logits = torch.log_softmax(model.eval()(input_ids=torch.tensor([before + after])).logits[0], -1)
    expected = sum(logits[len(before) + n - 1, token].item() for n, token in enumerate(after)) / len(after)
    assert prediction["scores"][0] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - by_hand(gpt2, tokenizer, tokenizer.decode(before), " negative")[0] / len(after)) > 1e-3


# Rows


def test_the_same_split_is_read_as_in_fine_tuning(folder, reviews_file):
    recipe = FinetuneConfig(
        model_name_or_path="-",
        train_path=str(reviews_file),
        label_field="verdict",
        label_map={"fresh": "positive", "rotten": "negative"},
        group_by="film",
        test_fraction=0.3,
        split_seed=4,
    )
    task = get_task("sentiment")
    source = recipe.source("test", task)
    done = evaluate_from(
        options(
            folder,
            tasks=["sentiment"],
            data=[str(reviews_file)],
            fields={"label": "verdict"},
            label_map={"fresh": "positive", "rotten": "negative"},
            part="test",
            test_fraction=0.3,
            group_by="film",
            split_seed=4,
            shots=["0", "1"],
            max_rows=20,
        )
    )
    expected = read_examples(task, source, RowErrors(0), recipe.field_map(task), progress=False)
    assert [p["where"] for p in done.results[0].predictions] == [one.where for one in expected[:20]]
    train = read_examples(task, recipe.source("train", task), RowErrors(0), recipe.field_map(task), progress=False)
    drawn = {where for prediction in done.results[1].predictions for where in prediction["shots"]}
    assert drawn <= {one.where for one in train} and len(drawn) > 10


def test_malformed_rows_are_named_and_counted(folder, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*REVIEWS[:3], {"text": "Fine.", "label": "good"}, {"text": "Fine."}])
    with open(path, "a") as file:
        file.write('{"text": "cut off\n')
    done = evaluate_from(options(folder, tasks=["sentiment"], data=[str(path)], where=None))
    result = done.results[0]
    assert (result.rows, result.bad_rows) == (3, 3)
    notes = "\n".join(done.notes())
    assert "3 malformed rows left out" in notes
    for line, reason in ((4, "Label 'good'"), (5, "no field `label`"), (6, "not JSON")):
        assert f"rows.jsonl:{line}: {reason}" in notes
    with pytest.raises(ValueError, match="More than 2 malformed rows"):
        evaluate_from(options(folder, tasks=["sentiment"], data=[str(path)], max_bad_rows=2))


def test_rows_too_long_to_be_asked_are_named_and_counted(folder, tmp_path):
    # Of the question nothing is cut.
    rows = [{"question": "Who? " * count, "context": "Mary.", "answer": "Mary"} for count in (1, 200, 1)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = evaluate_from(options(folder, tasks=["qa"], data=[str(path)], num_beams=1)).results[0]
    assert (done.rows, done.bad_rows) == (2, 1)
    assert done.bad_examples[0].startswith(f"{path}:2: prompt and answer take")
    with pytest.raises(ValueError, match="More than 0 malformed rows"):
        evaluate_from(options(folder, tasks=["qa"], data=[str(path)], num_beams=1, max_bad_rows=0))


def test_malformed_training_rows_are_named_and_counted(folder, reviews, tmp_path):
    train = write_jsonl(
        tmp_path / "train.jsonl", [*REVIEWS[:3], {"text": "Fine.", "label": "good"}, {"text": "Fine."}]
    )
    done = evaluate_from(
        options(folder, tasks=["sentiment"], data=[str(reviews)], train=[str(train)], shots=["1"], max_rows=2)
    )
    result = done.as_dict()["results"][0]
    assert (result["bad_rows"], result["bad_train_rows"]) == (0, 2)
    assert result["bad_train_examples"][0].startswith(f"{train}:4: Label 'good'")
    assert any("2 malformed training rows left out" in note and f"{train}:5:" in note for note in done.notes())


def test_a_written_answer_leaves_room_for_the_prompt(folder, tmp_path):
    # Of 192 positions: 256 tokens are the task's.
    data = write_jsonl(tmp_path / "wmt.jsonl", [{"fr": "le film", "en": "the film"}] * 2)
    asked = options(folder, tasks=["wmt14-fr-en"], data=[str(data)], num_beams=1)
    done = evaluate_from(asked)
    assert (done.results[0].rows, done.results[0].answer_tokens) == (2, POSITIONS // 2)
    assert any("answers have at most 96 tokens" in note for note in done.notes())
    model, tokenizer = load(folder / "gpt3", device="cpu")
    short = evaluate_from(replace(asked, max_new_tokens=3)).results[0]
    prompt = tokenizer.encode("Q: What is the English translation of le film\nA:")
    (expected,) = generate_texts(model, tokenizer, [prompt], max_new_tokens=3, stop=["\n"], progress=False)
    assert [row["prediction"] for row in short.predictions] == [expected] * 2
    assert short.answer_tokens == 3 and short.predictions != done.results[0].predictions
    assert evaluate_from(replace(asked, max_new_tokens=150)).results[0].rows == 2
    with pytest.raises(ValueError, match=r"192 tokens leaves nothing of 192 .* lower `--max-new-tokens`"):
        evaluate_from(replace(asked, max_new_tokens=192))
    with pytest.raises(ValueError, match="`--max-new-tokens` is of written answers"):
        evaluate_from(options(folder, tasks=["sentiment"], data=[str(data)], max_new_tokens=3))


def test_answers_of_a_fine_tuned_model_are_as_long_as_in_training(folder, tmp_path):
    model = fine_tuned(folder, "writer")
    save_task(TaskRecord(replace(get_task("free-qa"), max_new_tokens=100), "text", "en", max_length=150), model)
    data = write_jsonl(tmp_path / "qa.jsonl", [{"question": "Who?", "context": "Mary. " * 60, "answer": "Mary"}])
    result = evaluate_from(options(folder, model=str(model), data=[str(data)], num_beams=1)).results[0]
    _, tokenizer = load(folder / "gpt3", device="cpu")
    whole = len(tokenizer.encode(f"Question: Who?\nPassage: {'Mary. ' * 60}\nAnswer:"))
    assert result.answer_tokens is None and result.predictions[0]["cut_tokens"] == whole - 50


def test_rows_by_where_are_counted_and_max_rows_holds(folder, tmp_path):
    rows = [{**row, "stars": n % 3} for n, row in enumerate(REVIEWS[:12])]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = evaluate_from(options(folder, tasks=["sentiment"], data=[str(path)], where={"stars": [0, 1]})).results[0]
    assert done.rows == 8 and done.passed_over == {"`where`": 4}
    assert evaluate_from(options(folder, tasks=["sentiment"], data=[str(path)], max_rows=5)).results[0].rows == 5


def test_fewer_examples_than_wanted_are_said(folder, reviews, tmp_path):
    train = write_jsonl(
        tmp_path / "train.jsonl", [{"text": f"Film {n} was dull.", "label": "negative"} for n in range(30)]
    )
    done = evaluate_from(
        options(folder, tasks=["sentiment"], data=[str(reviews)], train=[str(train)], shots=["20"], max_rows=4)
    )
    result = done.results[0]
    assert result.fewer_shots == 4 and 0 < result.least_shots < 20
    assert "4 of 4 rows have fewer than 20 examples before them (at least " in "\n".join(done.notes())


# Benchmarks

HELLASWAG = [
    {
        "activity_label": "Cake",
        "ctx": f"Cake {n} is shown. they",
        "endings": ["bake.", "eat.", "go.", "run."],
        "label": str(n % 4),
    }
    for n in range(8)
]


def test_benchmarks_take_files_in_the_place_of_the_hub(folder, pair, tmp_path):
    gpt2, tokenizer, _ = pair
    data = write_jsonl(tmp_path / "hellaswag_val.jsonl", HELLASWAG[:3])
    train = write_jsonl(tmp_path / "hellaswag_train.jsonl", HELLASWAG[3:])
    piqa = write_jsonl(
        tmp_path / "piqa.jsonl", [{"goal": "Seal wood.", "sol1": "Brush.", "sol2": "Drip.", "label": 0}]
    )
    done = evaluate_from(
        options(
            folder,
            tasks=["hellaswag", "piqa"],
            data=[f"hellaswag={data}", f"piqa={piqa}"],
            train=[f"hellaswag={train}", f"piqa={piqa}"],
            shots=["0"],
        )
    )
    assert [(one.task, one.shots, one.rows) for one in done.results] == [("hellaswag", 0, 3), ("piqa", 0, 1)]
    total, tokens, _ = by_hand(gpt2, tokenizer, "Cake: Cake 0 is shown. they", " eat.")
    assert done.results[0].predictions[0]["scores"][1] == pytest.approx(total / tokens, abs=1e-5)
    assert "macro_f1" not in done.results[0].metrics
    assert done.results[0].split is None
    assert any("hellaswag" in line for line in done.scorecard)


def test_a_benchmark_off_the_hub_says_which_file_to_give(folder, tmp_path):
    with pytest.raises(ValueError, match=r"`--data hellaswag=FILE`, .* activity_label, ctx, endings, label") as error:
        evaluate_from(options(folder, tasks=["hellaswag"]))
    assert "hellaswag_val.jsonl" in str(error.value) and str(error.value).count("\n") == 0
    data = write_jsonl(tmp_path / "rows.jsonl", HELLASWAG)
    with pytest.raises(ValueError, match="`--train hellaswag=FILE`"):
        evaluate_from(options(folder, tasks=["hellaswag"], data=[str(data)], shots=["few"]))


def test_few_is_the_papers_number(folder, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", HELLASWAG)
    many = [{**row, "ctx": f"{row['ctx']} {n}"} for n in range(4) for row in HELLASWAG]
    train = write_jsonl(tmp_path / "train.jsonl", many)
    done = evaluate_from(
        options(folder, tasks=["hellaswag"], data=[str(data)], train=[str(train)], shots=["few"], max_rows=2)
    )
    assert done.results[0].shots == 20
    with pytest.raises(ValueError, match="`--shots few`"):
        evaluate_from(options(folder, tasks=["sentiment"], data=[str(data)], train=[str(train)], shots=["few"]))


def test_a_name_may_stand_for_several_benchmarks(folder, tmp_path):
    race = [{"article": "It is red.", "question": "Red?", "options": ["a", "b", "c", "d"], "answer": "A"}]
    file = write_jsonl(tmp_path / "race.jsonl", race)
    done = evaluate_from(options(folder, tasks=["race"], data=[f"race-high={file}", f"race-middle={file}"]))
    assert [one.task for one in done.results] == ["race-high", "race-middle"]
    assert options(folder, tasks=["wmt16", "piqa"]).tasks == ["wmt16-de-en", "wmt16-en-de", "piqa"]
    assert len(options(folder, tasks=["kobest"]).tasks) == 5


# What is saved


def test_numbers_that_are_none_are_null(folder, tmp_path, reviews):
    done = evaluate_from(options(folder, tasks=["sentiment"], data=[str(reviews)], max_rows=2))
    done.perplexity["text"] = {"perplexity": math.inf, "loss": 800.0, "windows": (1, math.nan)}
    done.save(tmp_path / "out")

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    saved = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=refuse)
    assert saved["perplexity"]["text"] == {"perplexity": None, "loss": 800.0, "windows": [1, None]}


def test_tasks_of_one_name_have_files_of_their_own(folder, tmp_path, reviews):
    files = [task_file(tmp_path / f"{name}.yaml", "Nli" if name == "b" else "nli", ["en"]) for name in "ab"]
    other = write_jsonl(tmp_path / "other.jsonl", REVIEWS[:3])
    names = [str(file) for file in files]
    data = [f"{names[0]}={reviews}", f"{names[1]}={other}"]
    evaluate_from(options(folder, tasks=names, data=data, output=str(tmp_path / "out")))
    first, second = (tmp_path / "out" / "predictions" / f"{name}.jsonl" for name in ("nli-0shot", "Nli-0shot-2"))
    assert (len(read_jsonl(first)), len(read_jsonl(second))) == (len(REVIEWS), 3)


@pytest.mark.parametrize("output", ["reviews.jsonl", "reviews.jsonl/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_said_before_the_model_is_loaded(folder, reviews, output, monkeypatch):
    monkeypatch.setattr("hfgpt.evaluation.evaluate.load", lambda *_: pytest.fail("the model was loaded"))
    output = str(reviews.parent / output)  # an absolute one stays itself
    with pytest.raises(ValueError, match=r"`--output .*" + output.rpartition("/")[2]):
        evaluate_from(options(folder, tasks=["sentiment"], data=[str(reviews)], output=output))


def test_results_that_cannot_be_saved_are_not_lost(folder, reviews, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hfgpt.evaluation.results.Path.write_text", full)
    asked = options(folder, tasks=["sentiment"], data=[str(reviews)], output=str(tmp_path / "out"), max_rows=2)
    done = evaluate_from(asked)
    assert done.results[0].rows == 2
    assert "not saved" in done.unsaved and "No space left" in done.unsaved


def test_results_and_predictions_are_saved(folder, reviews, tmp_path, pair):
    gpt2, tokenizer, _ = pair
    output = tmp_path / "out"
    train = write_jsonl(
        tmp_path / "train.jsonl", [{"text": f"Film {n} was dull.", "label": "negative"} for n in range(5)]
    )
    done = evaluate_from(
        options(
            folder,
            tasks=["sentiment"],
            data=[str(reviews)],
            train=[str(train)],
            shots=["0", "2"],
            output=str(output),
            max_rows=6,
        )
    )
    saved = json.loads((output / "results.json").read_text())
    assert saved == json.loads(json.dumps(done.as_dict()))
    assert [one["shots"] for one in saved["results"]] == [0, 2] and "predictions" not in saved["results"][0]
    accuracy = saved["results"][1]["metrics"]["accuracy"]
    rows = read_jsonl(output / "predictions" / "sentiment-2shot.jsonl")
    assert len(rows) == 6 and accuracy["value"] == pytest.approx(sum(row["correct"] for row in rows) / 6)
    shown = {f"{train}:{n + 1}": f"Review: Film {n} was dull.\nSentiment: negative\n\n" for n in range(5)}
    for number, row in enumerate(rows):
        assert row["where"] == f"{reviews}:{number + 1}"
        before = "".join(shown[where] for where in row["shots"])
        for score, choice in zip(row["scores"], row["choices"]):
            total, tokens, _ = by_hand(gpt2, tokenizer, before + row["prompt"], choice)
            assert score == pytest.approx(total / tokens, abs=1e-5)
        assert row["correct"] == (row["prediction"] == row["references"][0])


def test_the_table_has_intervals_and_the_baseline(folder, reviews):
    lines = evaluate_from(options(folder, tasks=["sentiment"], data=[str(reviews)])).lines()
    assert lines[0].split()[:5] == ["task", "lang", "shots", "rows", "metric"]
    accuracy = next(line for line in lines if " accuracy " in line)
    assert "% to " in accuracy and "majority " in accuracy


def test_perplexity_alone_needs_no_task(folder, tmp_path):
    (tmp_path / "text.txt").write_text("The film was dull.", encoding="utf-8")
    done = evaluate_from(options(folder, perplexity=[str(tmp_path / "text.txt")], stride=8))
    found = done.as_dict()["perplexity"][str(tmp_path / "text.txt")]
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"])) and found["stride"] == 8
    assert "bits per byte" in done.lines()[0]


def test_the_options_of_rows_are_the_texts_where_there_is_no_task(folder, tmp_path, corpus):
    rows = [{"body": f"The film {n} was dull.", "stars": n % 2} for n in range(6)]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    wanted = write_jsonl(tmp_path / "wanted.jsonl", [{"text": row["body"]} for row in rows if row["stars"] == 1][:2])
    asked = options(folder, perplexity=[path], fields={"text": "body"}, where={"stars": 1}, max_rows=2)
    found = evaluate_from(asked).perplexity[path]
    expected = evaluate_from(options(folder, perplexity=[str(wanted)])).perplexity[str(wanted)]
    assert found["documents"] == 2 and found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    for changes, message in (
        ({"fields": {"body": "text"}}, "reads one field: give `--fields text=NAME`"),
        ({"label_map": {"a": "b"}}, "`--label-map` is of tasks"),
        ({"shots": ["2"]}, "`--shots` is of tasks"),
        ({"perplexity": [str(corpus)]}, "is a prepared corpus, which has no rows"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_from(replace(asked, **changes))
    # With a task they are the task's, and the text is read whole.
    data = write_jsonl(tmp_path / "data.jsonl", [{"t": row["text"], "label": row["label"]} for row in REVIEWS])
    both = options(
        folder, tasks=["sentiment"], data=[str(data)], fields={"text": "t"}, max_rows=3, perplexity=[str(wanted)]
    )
    done = evaluate_from(both)
    assert done.results[0].rows == 3 and done.perplexity[str(wanted)]["loss"] == expected["loss"]


def test_clean_and_dirty_rows_are_scored_apart(folder, tmp_path):
    # The first four texts are in the corpus.
    things = [f"thing{n}" for n in range(15)]
    texts = [" ".join(f"{thing}{row}" for thing in things) + "." for row in range(8)]
    rows = [{"text": text, "label": "positive" if n % 2 else "negative"} for n, text in enumerate(texts)]
    data = write_jsonl(tmp_path / "test.jsonl", rows)
    documents = [{"text": f"A document about {n}. {text} And so on and on."} for n, text in enumerate(texts[:4])]
    recipe = {
        "sources": [{"name": "docs", "path": str(write_jsonl(tmp_path / "docs.jsonl", documents))}],
        "deduplicate": "exact",
        "decontaminate": {
            "benchmarks": [{"name": "reviews", "path": str(data)}],
            "window_characters": 0,
            "min_piece_characters": 1,
        },
        "tokenizer": {"vocab_size": 300},
        "holdout_fraction": 0.0,
    }
    prepare(from_mapping(CorpusConfig, recipe, "recipe"), tmp_path / "corpus", executor=ExecutorConfig(workers=1))
    asked = options(
        folder, tasks=["sentiment"], data=[str(data)], max_rows=6, contamination=f"reviews={tmp_path / 'corpus'}"
    )
    done = evaluate_from(asked)
    found = done.results[0].as_dict()["contamination"]
    assert (found["rows"]["dirty"], found["rows"]["clean"]) == (4, 2)
    assert any("4 dirty" in line for line in done.lines())
    with pytest.raises(ValueError, match="was not looked through for 'sentiment'"):
        evaluate_from(replace(asked, contamination=str(tmp_path / "corpus")))


def test_the_harness_is_asked_the_same_rows(folder, tmp_path):
    pytest.importorskip("lm_eval")
    rows = [
        {
            "sentence": f"The film had {n} parts but the music none as the _ was dull.",
            "option1": "film",
            "option2": "music",
        }
        for n in range(5)
    ]
    data = write_jsonl(tmp_path / "dev.jsonl", [{**row, "answer": str(1 + n % 2)} for n, row in enumerate(rows)])
    done = evaluate_from(options(folder, tasks=["winogrande"], data=[str(data)], harness=True))
    theirs = done.as_dict()["harness"]["results"][0]
    assert (theirs["task"], theirs["rows"]) == ("winogrande", 5)
    # Where the protocols agree, so do the scores.
    assert theirs["metrics"]["acc"]["value"] == done.results[0].metrics["accuracy"].value
    assert any("lm-evaluation-harness" in line for line in done.lines())
    with pytest.raises(ValueError, match="`--harness` is for the benchmarks"):
        evaluate_from(options(folder, perplexity=[str(data)], harness=True))


# What cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "Nothing to evaluate"),
        ({"data": ["rows.jsonl"]}, r"no task\.json"),
        ({"tasks": ["sentiment"]}, "`--data FILE`"),
        (
            {"tasks": ["sentimental"], "data": ["rows.jsonl"]},
            r"Unknown `task` 'sentimental' \(did you mean `sentiment`\?\); the tasks are .*benchmarks .*nsmc",
        ),
        ({"tasks": ["hellaswig"]}, "did you mean `hellaswag`"),
        ({"tasks": ["piqa", "piqa"]}, "`--tasks` has piqa more than once"),
        ({"tasks": ["race", "race-high"]}, "`--tasks` has race-high more than once"),
        ({"tasks": ["sentiment"], "shots": []}, "`--shots` names no number"),
        ({"tasks": ["sentiment"], "shots": ["0", "1", "0"]}, "`--shots` has 0 more than once"),
        (
            {"tasks": ["hellaswag"], "data": ["x"], "train": ["y"], "shots": ["20", "few"]},
            "`--shots` has 20 more than",
        ),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "test_fraction": 0.5}, "`--test-fraction` .* `--part test`"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "group_by": "film"}, "`--group-by` .* `--part test`"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "split_seed": 1}, "`--split-seed` .* `--part test`"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "stride": 1}, "`--stride` is of `--perplexity`"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "max_new_tokens": 0}, "`--max-new-tokens` must be at least 1"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "device": "foo"}, r"`--device foo` cannot .* give cpu"),
        ({"tasks": ["sentiment"], "language": "fr", "data": ["rows.jsonl"]}, "it has en, ko"),
        ({"tasks": ["sentiment"], "data": ["/nowhere/rows.jsonl"]}, "/nowhere/rows.jsonl"),
        ({"tasks": ["sentiment", "qa"], "data": ["rows.jsonl"]}, "`--data TASK=FILE`"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "dataset": "nsmc"}, "one of them"),
        ({"tasks": ["hellaswag"], "language": "ko"}, "hellaswag is asked in 'en'"),
        ({"tasks": ["hellaswag"], "part": "test", "test_fraction": 0.5}, "has its own splits"),
        ({"tasks": ["sentiment"], "dataset": "no/such"}, "Cannot load `dataset: no/such`"),
        ({"tasks": ["sentiment", "qa"], "fields": {"text": "t"}}, "`--fields` is for one task"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "fields": {"txt": "t"}}, "`fields` names txt"),
        ({"tasks": ["sentiment"], "shots": ["two"]}, "`--shots` takes numbers"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "part": "test"}, "`test_fraction`"),
        ({"model": "no/such/folder", "tasks": ["sentiment"], "data": ["x.jsonl"]}, "No model 'no/such/folder'"),
        ({"model": "nowhere/at-all", "tasks": ["sentiment"], "data": ["x.jsonl"]}, "nowhere/at-all"),
        ({"tasks": ["sentiment"], "data": ["x.jsonl"], "max_rows": 0}, "`--max-rows` must be at least 1"),
    ],
)
def test_what_cannot_be_is_one_message(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_from(options(folder, **changes))


def test_a_row_of_other_fields_is_read_by_a_field_map(pair):
    _, tokenizer, gpt3 = pair
    rows = [{"t": "A warm film.", "label": "1"}, {"t": "A dull one.", "label": "0"}]
    fields = FieldMap({"text": "t"}, {"1": "positive", "0": "negative"})
    result = evaluate(gpt3, tokenizer, "sentiment", rows, fields=fields, resamples=20, progress=False)
    assert result.results[0].rows == 2

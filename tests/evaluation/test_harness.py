"""lm-evaluation-harness scores our models as they are, from local rows, and agrees with us where the protocols do."""

import copy
import json
import logging
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

from hfgpt import GPT3ForCausalLM
from hfgpt.data.readers import RowErrors, SourceConfig
from hfgpt.data.tokenizer import train_tokenizer
from hfgpt.evaluation import harness
from hfgpt.evaluation.benchmarks import BENCHMARKS, field_map
from hfgpt.evaluation.harness import HARNESS_TASKS, harness_lines, harness_scores
from hfgpt.evaluation.protocol import answer, ask, draw_shots
from hfgpt.model.convert import convert
from hfgpt.tasks import ChoiceTask
from hfgpt.tasks.encoding import token_ids
from hfgpt.tasks.rows import read_examples
from hfgpt.tasks.scoring import generate_texts, log_likelihoods


pytest.importorskip("lm_eval", reason="needs hfgpt[harness]")

WORDS = ["cat", "dog", "mat", "house", "river", "sat", "ate", "ran", "slept", "saw", "big", "small", "red", "old"]
KOREAN = ["고양이가", "강아지가", "매트에", "집에서", "앉았다", "먹었다", "잤다"]
POSITIONS, BAND = 192, 8
CLOSE = {"rel": 1e-6, "abs": 1e-5}


def sentence(generator: random.Random, words: int = 8, of: list[str] = WORDS) -> str:
    return " ".join(generator.choice(of) for _ in range(words))


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE in which each of the words is one token."""
    return train_tokenizer([f" {' '.join(WORDS)} {' '.join(KOREAN)}"] * 40, 600)


@pytest.fixture(scope="module", params=["gpt2", "gpt_neo", "banded"])
def models(request, tokenizer, tmp_path_factory) -> tuple[Any, GPT3ForCausalLM]:
    """A model for the harness, and a gpt3 with the same weights; the last is a banded one as it is."""
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.3, **ids}
    if request.param == "banded":
        model = banded(tokenizer)
        return model, model
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "gpt2":
        source: Any = GPT2LMHeadModel(GPT2Config(n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=2, **common))
    else:
        source = GPTNeoForCausalLM(
            GPTNeoConfig(
                max_position_embeddings=POSITIONS,
                hidden_size=32,
                num_layers=2,
                num_heads=2,
                window_size=BAND,
                attention_types=[[["global", "local"], 1]],
                **common,
            )
        )
    source.save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    convert(folder / "source", folder / "gpt3", "gpt3")
    return source.eval(), GPT3ForCausalLM.from_pretrained(folder / "gpt3")


def banded(tokenizer) -> GPT3ForCausalLM:
    from hfgpt import GPT3Config

    torch.manual_seed(1)
    config = GPT3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        sliding_window=BAND,
        initializer_range=0.3,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    assert "sliding_attention" in config.layer_types
    return GPT3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model(tokenizer) -> GPT3ForCausalLM:
    return banded(tokenizer)


def harness_model(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4)


def ours(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> list:
    prompts = [token_ids(tokenizer, context) for context, _ in pairs]
    choices = [[token_ids(tokenizer, completion)] for _, completion in pairs]
    found = log_likelihoods(model, prompts, choices, pad_token_id=tokenizer.eos_token_id, progress=False)
    return [likelihood for (likelihood,) in found]


# --- The same numbers


def test_log_likelihoods_and_greedy_flags_are_the_harness(models, tokenizer):
    from lm_eval.api.instance import Instance

    theirs, model = models
    generator = random.Random(0)
    pairs = [(sentence(generator, n), " " + sentence(generator, k)) for n in (1, 3, 9, 30, 90) for k in (1, 2, 7)]
    pairs += [(sentence(generator, n, KOREAN), " " + sentence(generator, 3, KOREAN)) for n in (2, 20)]
    # What the model itself would write is greedy.
    pairs += [written_by(model, tokenizer, generator) for _ in range(3)]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    expected = harness_model(theirs, tokenizer).loglikelihood(requests, disable_tqdm=True)
    found = ours(model, tokenizer, pairs)
    assert [likelihood.total for likelihood in found] == pytest.approx([total for total, _ in expected], **CLOSE)
    assert [likelihood.greedy for likelihood in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in expected} == {True, False}
    assert max(len(token_ids(tokenizer, context)) for context, _ in pairs) > 2 * BAND


def written_by(model: Any, tokenizer: Any, generator: random.Random) -> tuple[str, str]:
    """A text, and the word that the model itself would write next: one token."""
    for _ in range(1000):
        context = sentence(generator, 12)
        ids = token_ids(tokenizer, context)
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        word = tokenizer.decode([token])
        if word[:1] == " " and word[1:].isalpha() and token_ids(tokenizer, context + word) == [*ids, token]:
            return context, word
    raise AssertionError("the model writes no words")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(count: int, seed: int) -> list[dict]:
    generator = random.Random(seed)
    return [
        {
            "question": f"{sentence(generator, 6)} ({number})",
            "options": [sentence(generator, generator.randint(1, 4)) for _ in range(3)],
            "gold": generator.randrange(3),
        }
        for number in range(count)
    ]


QUESTIONS = ChoiceTask(
    name="questions",
    prompt="Question: {question}\nAnswer:",
    choices_field="options",
    label_field="gold",
    normalization="sum",
    metrics=["accuracy"],
)


@pytest.mark.parametrize("shots", [0, 3])
def test_choices_are_the_harness_with_and_without_examples(models, tokenizer, tmp_path, monkeypatch, shots):
    import lm_eval
    from lm_eval.tasks import TaskManager

    # It asks pip for all packages, to say in its results what it ran with.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    theirs, model = models
    rows, pool = questions(20, seed=1), questions(3, seed=2)
    test = write_rows(tmp_path / "test.jsonl", rows)
    train = write_rows(tmp_path / "train.jsonl", pool)
    examples, examples_pool = (
        read_examples(QUESTIONS, SourceConfig(path=str(file), text_field="question"), RowErrors(), progress=False)
        for file in (test, train)
    )
    asked = ask(
        tokenizer, QUESTIONS, examples, max_length=POSITIONS, shots=shots, pool=examples_pool, fixed_shots=True
    )
    assert all(len(one.shots) == shots for one in asked)
    predictions = answer(model, tokenizer, QUESTIONS, asked, progress=False)

    drawn = draw_shots(examples_pool, examples[0], shots, seed=0, number=0)
    order = [int(shot.where.rpartition(":")[2]) - 1 for shot in drawn]
    definition = {
        "task": "questions",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"train": str(train), "test": str(test)},
            "cache_dir": str(tmp_path / "cache"),
        },
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "gold",
        "doc_to_choice": "options",
        "fewshot_config": {"sampler": "first_n", "samples": [pool[number] for number in order]},
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump(definition))
    found = lm_eval.simple_evaluate(
        harness_model(theirs, tokenizer),
        tasks=[str(tmp_path / "questions.yaml")],
        num_fewshot=shots,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    samples = found["samples"]["questions"]
    assert samples[0]["arguments"][0][0] == asked[0].example.prompt
    for sample, prediction in zip(samples, predictions):
        assert [total for total, _ in sample["filtered_resps"]] == pytest.approx(prediction.scores, **CLOSE)
    accuracy = sum(prediction.label == row["gold"] for prediction, row in zip(predictions, rows)) / len(rows)
    assert 0.0 < accuracy < 1.0
    assert found["results"]["questions"]["acc,none"] == accuracy
    # Without what `simple_evaluate` does besides, the same.
    (own,) = harness_scores(theirs, tokenizer, [str(tmp_path / "questions.yaml")], (shots,))["results"]
    assert own["metrics"]["acc"]["value"] == accuracy
    assert (own["task"], own["shots"], own["rows"]) == ("questions", shots, len(rows))


def test_winogrande_is_the_harness_without_examples(model, tokenizer, tmp_path):
    file = write_rows(tmp_path / "dev.jsonl", [row_of("winogrande", number) for number in range(30)])
    labels = our_choices("winogrande", model, tokenizer, file)
    (found,) = harness_scores(model, tokenizer, ["winogrande"], data=sources("winogrande", file))["results"]
    assert len(set(labels)) == 2
    gold = [number % 2 for number in range(30)]
    assert found["rows"] == 30
    assert found["metrics"]["acc"]["value"] == sum(a == b for a, b in zip(labels, gold)) / 30


def test_lambada_is_the_harness_without_examples(model, tokenizer, tmp_path):
    generator = random.Random(3)
    rows = []
    # Every second one is a word that the model would write.
    for _ in range(6):
        context, word = written_by(model, tokenizer, generator)
        rows.append({"text": context + word})
        rows.append({"text": f"{context} {next(other for other in WORDS if f' {other}' != word)}"})
    file = write_rows(tmp_path / "lambada.jsonl", rows)
    benchmark = BENCHMARKS["lambada"]
    examples = read_examples(
        benchmark.task, SourceConfig(path=str(file)), RowErrors(), field_map(benchmark), progress=False
    )
    asked = ask(tokenizer, benchmark.task, examples, max_length=POSITIONS)
    predictions = answer(model, tokenizer, benchmark.task, asked, progress=False)
    hits = [prediction.text == example.references[0] for prediction, example in zip(predictions, examples)]
    (found,) = harness_scores(model, tokenizer, ["lambada"], data=sources("lambada", file))["results"]
    assert hits == [True, False] * 6
    assert found["metrics"]["acc"]["value"] == 0.5


def our_choices(name: str, model: Any, tokenizer: Any, file: Path) -> list[int]:
    benchmark = BENCHMARKS[name]
    source = SourceConfig(path=str(file), text_field=benchmark.raw_fields[0])
    examples = read_examples(benchmark.task, source, RowErrors(), field_map(benchmark), progress=False)
    asked = ask(tokenizer, benchmark.task, examples, max_length=POSITIONS)
    predictions = answer(model, tokenizer, benchmark.task, asked, progress=False)
    return [prediction.label for prediction in predictions]


def test_free_text_of_a_banded_model_is_ours(model, tokenizer):
    from lm_eval.api.instance import Instance

    generator = random.Random(5)
    prompts = [sentence(generator, words) for words in (4, 40, 11, 70)]
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    requests = [Instance("generate_until", {}, (prompt, dict(settings)), 0) for prompt in prompts]
    found = harness_model(model, tokenizer).generate_until(requests, disable_tqdm=True)
    expected = generate_texts(
        model,
        tokenizer,
        [token_ids(tokenizer, prompt) for prompt in prompts],
        max_new_tokens=12,
        stop=["\n"],
        progress=False,
    )
    assert [text.strip() for text in found] == expected
    assert any(expected)


# --- Its own tasks, from local rows


def row_of(name: str, number: int) -> dict:
    """A row of a benchmark as it is published, whose answer changes with its number."""
    generator = random.Random(number)
    text = [sentence(generator, 6) for _ in range(8)]
    pair = number % 2
    rows: dict[str, Any] = {
        "lambada": {"text": text[0]},
        "hellaswag": {
            "activity_label": "Cats",
            "ctx": f"{text[0]} {text[1]}",
            "ctx_a": text[0],
            "ctx_b": text[1],
            "endings": text[2:6],
            "label": number % 4,
        },
        "piqa": {"goal": text[0], "sol1": text[1], "sol2": text[2], "label": pair},
        "winogrande": {
            "sentence": f"{text[0]} _ {text[1]}",
            "option1": "cat",
            "option2": "old dog",
            "answer": str(1 + pair),
        },
        "arc-easy": {
            "question": {
                "stem": text[0],
                "choices": [{"text": text[1 + n], "label": label} for n, label in enumerate("ABCD")],
            },
            "answerKey": "ABCD"[number % 4],
        },
        "arc-challenge": {
            "question": text[0],
            "choices": {"text": text[1:5], "label": list("1234")},
            "answerKey": "1234"[number % 4],
        },
        "openbookqa": {
            "question_stem": text[0],
            "choices": {"text": text[1:5], "label": list("ABCD")},
            "answerKey": "ABCD"[number % 4],
        },
        "storycloze": {
            **{f"InputSentence{n}": text[n] for n in range(1, 5)},
            "RandomFifthSentenceQuiz1": text[5],
            "RandomFifthSentenceQuiz2": text[6],
            "AnswerRightEnding": 1 + pair,
        },
        "triviaqa": {"question": text[0], "answer": {"value": "cat", "aliases": ["cat", "the cat"]}},
        "boolq": {"passage": text[0], "question": text[1], "answer": bool(pair)},
        "kobest-boolq": {"paragraph": text[0], "question": text[1], "label": pair},
        "kobest-copa": {
            "premise": text[0],
            "question": "원인",
            "alternative_1": text[1],
            "alternative_2": text[2],
            "label": pair,
        },
        "kobest-wic": {"word": "cat", "context_1": text[0], "context_2": text[1], "label": pair},
        "kobest-hellaswag": {
            "context": text[0],
            **{f"ending_{n}": text[n] for n in range(1, 5)},
            "label": number % 4,
        },
        "kobest-sentineg": {"sentence": text[0], "label": pair},
    }
    if name.startswith("wmt"):
        return {"translation": {language: sentence(generator) for language in ("en", "fr", "de")}}
    return rows[name]


def sources(name: str, file: Path) -> dict[str, SourceConfig]:
    return {name: SourceConfig(path=str(file))}


LOCAL = [name for name, task in HARNESS_TASKS.items() if task.fields]


def test_every_benchmark_of_the_mapping_is_one_of_ours():
    assert set(HARNESS_TASKS) <= set(BENCHMARKS)
    assert set(BENCHMARKS) - set(HARNESS_TASKS) == {"nsmc", "race-middle"}


@pytest.mark.parametrize("name", LOCAL)
def test_local_rows_have_the_same_answers_in_the_harness(name, tmp_path):
    file = write_rows(tmp_path / "test.jsonl", [row_of(name, number) for number in range(4)])
    train = write_rows(tmp_path / "train.jsonl", [row_of(name, number) for number in range(10, 13)])
    with harness._quiet():
        loaded = harness._load(name, 1, None, sources(name, file), sources(name, train), {}, RowErrors(), RowErrors())
    (task,) = loaded["tasks"].values()
    assert task.config.task == HARNESS_TASKS[name].name
    docs = list(task.eval_docs)
    assert len(docs) == 4
    # The training rows, and not those that are scored, where there are any.
    assert len(list(task.fewshot_docs())) == (3 if HARNESS_TASKS[name].train else 4)
    benchmark = BENCHMARKS[name]
    source = SourceConfig(path=str(file), text_field=benchmark.raw_fields[0])
    examples = read_examples(benchmark.task, source, RowErrors(), field_map(benchmark), progress=False)
    for doc, example in zip(docs, examples):
        if name == "winogrande":
            assert task.doc_to_text(doc) == example.label
        elif name == "kobest-copa":
            assert task.doc_to_target(doc) == example.choices[example.label].strip()
        elif example.choices:
            assert int(task.doc_to_target(doc)) == example.label
        else:
            target = task.doc_to_target(doc)
            assert example.references[0] in (target if isinstance(target, list) else [target.strip()])


def test_labels_of_csv_are_numbers_for_the_harness(tmp_path):
    file = tmp_path / "test.csv"
    rows = [row_of("kobest-copa", number) for number in range(4)]
    file.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]), "utf-8")
    with harness._quiet():
        loaded = harness._load("kobest-copa", 0, None, sources("kobest-copa", file), {}, {}, RowErrors(), RowErrors())
    (task,) = loaded["tasks"].values()
    targets = [task.doc_to_target(doc) for doc in task.eval_docs]
    assert targets == [row[f"alternative_{1 + number % 2}"] for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def scored(model, tokenizer, tmp_path_factory) -> tuple[dict, dict]:
    """Scores of four tasks with 0 and 1 examples, and what around the model is to be as before."""
    folder = tmp_path_factory.mktemp("rows")
    names = ["lambada", "hellaswag", "kobest-sentineg", "wmt14-fr-en"]
    data, train = {}, {}
    for name in names:
        data |= sources(name, write_rows(folder / f"{name}.jsonl", [row_of(name, n) for n in range(9)]))
        train |= sources(name, write_rows(folder / f"{name}-train.jsonl", [row_of(name, n) for n in range(20, 24)]))

    def state() -> dict:
        return {
            "python": random.getstate(),
            "torch": torch.get_rng_state().tolist(),
            "training": model.training,
            "pad": tokenizer.pad_token,
            "side": tokenizer.padding_side,
            "log": logging.getLogger("lm_eval").level,
        }

    model.train()
    before = state()
    found = harness_scores(
        model, tokenizer, [*names, "nsmc", "sentiment"], (0, 1), limit=6, data=data, train=train, max_length=96
    )
    after = state()
    model.eval()
    return found, {"before": before, "after": after}


def test_scores_of_its_own_tasks(scored):
    found, _ = scored
    keys = [(result["task"], result["harness_task"], result["shots"], result["rows"]) for result in found["results"]]
    assert keys == [
        (name, HARNESS_TASKS[name].name, shots, 6)
        for shots in (0, 1)
        for name in ("lambada", "hellaswag", "kobest-sentineg", "wmt14-fr-en")
    ]
    metrics = {result["task"]: result["metrics"] for result in found["results"]}
    assert set(metrics["hellaswag"]) == {"acc", "acc_norm"}
    assert set(metrics["kobest-sentineg"]) == {"acc", "f1"}
    assert set(metrics["wmt14-fr-en"]) == {"bleu", "chrf", "ter"}
    score = metrics["hellaswag"]["acc"]
    assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert metrics["lambada"]["perplexity"]["low"] is None
    json.dumps(found)


def test_nothing_around_it_is_changed(scored):
    states = scored[1]
    assert states["before"] == states["after"]


def test_table_and_differences(scored):
    found, _ = scored
    mine = {
        "task": "hellaswag",
        "shots": 1,
        "rows": 9,
        "metrics": {"accuracy": {"value": 0.25, "low": 0.2, "high": 0.3}},
    }
    lines = harness_lines([mine], found)
    table = [line.split() for line in lines]
    assert ["hellaswag*", "1", "hfgpt", "9", "accuracy", "25.0%", "20.0%", "to", "30.0%"] in table
    assert not [row for row in table if row[:3] == ["hellaswag*", "0", "hfgpt"]]
    assert [row[:5] for row in table if row[:2] == ["hellaswag*", "1"]][1:] == [
        ["hellaswag*", "1", "harness", "6", "acc"],
        ["hellaswag*", "1", "harness", "6", "acc_norm"],
    ]
    text = "\n".join(lines)
    assert "* hellaswag in the harness: drops what is in [brackets]; acc compares sums" in text
    assert "The harness has no nsmc, sentiment." in text


def test_interval_is_of_the_mean():
    low, high = harness._interval(0.25, [1, 0, 0, 0] * 25)
    assert (low, high) == pytest.approx((0.25 - 0.0853, 0.25 + 0.0853), abs=1e-4)
    assert harness._interval(0.0, [0] * 5) == (0.0, 0.0)
    assert harness._interval(7.0, [-3.5, -1.0]) == (None, None)
    assert harness._interval(1.0, [1]) == (None, None)


def test_rows_are_those_that_where_and_names_of_fields_say(tmp_path):
    rows = [{**row_of("piqa", n), "kind": "ab"[n % 2], "aims": {"first": f"goal {n}"}} for n in range(8)]
    for n, row in enumerate(rows):
        del row["goal"]
        row["label"] = ("left", "right")[n % 2]
    source = SourceConfig(path=str(write_rows(tmp_path / "piqa.jsonl", rows)), where={"kind": "b"}, max_rows=3)
    names = field_map(BENCHMARKS["piqa"], {"goal": "aims.first"}, {"left": "0", "right": "1"})
    found = harness._rows(HARNESS_TASKS["piqa"], source, names, None, RowErrors())
    assert [row["goal"] for row in found] == ["goal 1", "goal 3", "goal 5"]
    assert [row["label"] for row in found] == [1, 1, 1]
    assert len(harness._rows(HARNESS_TASKS["piqa"], source, names, 2, RowErrors())) == 2


# --- What goes wrong


def test_rows_that_lack_a_field_are_left_out_and_named(model, tokenizer, tmp_path):
    rows = [row_of("piqa", number) for number in range(4)]
    del rows[2]["sol2"]
    file = write_rows(tmp_path / "piqa.jsonl", rows)
    found = harness_scores(model, tokenizer, ["piqa"], data=sources("piqa", file))
    assert found["results"][0]["rows"] == 3 and found["results"][0]["bad_rows"] == 1
    assert f"piqa: 1 rows left out of the harness's: {file}:3: no field 'sol2'" in harness_lines([], found)


def test_training_rows_that_cannot_be_shown_are_named_and_counted(model, tokenizer, tmp_path):
    file = write_rows(tmp_path / "piqa.jsonl", [row_of("piqa", number) for number in range(4)])
    train = [row_of("piqa", number) for number in range(10, 14)]
    del train[1]["goal"]
    train[2]["sol1"] = "broken"
    shown = write_rows(tmp_path / "train.jsonl", train)
    shown.write_text(shown.read_text().replace("broken", "\\ud800"))
    found = harness_scores(model, tokenizer, ["piqa"], (1,), data=sources("piqa", file), train=sources("piqa", shown))
    (result,) = found["results"]
    assert (result["bad_rows"], result["bad_train_rows"]) == (0, 2)
    said = f"piqa: 2 training rows left out of the harness's: {shown}:2: no field 'goal'"
    assert any(line.startswith(said) for line in harness_lines([], found))
    assert f"{shown}:3: field `sol1` is not valid UTF-8" in result["bad_train_examples"]


def test_no_usable_rows(model, tokenizer, tmp_path):
    file = write_rows(tmp_path / "other.jsonl", [{"text": "x"}])
    with pytest.raises(
        ValueError, match=r"no rows for the harness's piqa, which needs the fields goal, sol1.*no field"
    ):
        harness_scores(model, tokenizer, ["piqa"], data=sources("piqa", file))


def test_examples_need_training_rows(model, tokenizer, tmp_path):
    file = write_rows(tmp_path / "piqa.jsonl", [row_of("piqa", number) for number in range(4)])
    with pytest.raises(ValueError, match=r"2 shots of piqa .* give `--train piqa=FILE`"):
        harness_scores(model, tokenizer, ["piqa"], (2,), data=sources("piqa", file))


def test_what_reads_the_hub_alone(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"reads squadv2 from the Hub alone"):
        harness_scores(model, tokenizer, ["squadv2"], data=sources("squadv2", tmp_path / "x.jsonl"))
    with pytest.raises(ValueError, match=r"cannot load piqa .*--data TASK=FILE"):
        harness_scores(model, tokenizer, ["piqa"])


def test_no_such_task(model, tokenizer):
    with pytest.raises(ValueError, match=r"no task 'none.yaml'"):
        harness_scores(model, tokenizer, ["none.yaml"])


def test_harness_is_not_installed(model, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'hfgpt\[harness\]'"):
        harness_scores(model, tokenizer, ["piqa"])


def test_tokenizer_without_padding_stays_so(model, tokenizer, tmp_path):
    file = write_rows(tmp_path / "piqa.jsonl", [row_of("piqa", number) for number in range(3)])
    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    results = [
        harness_scores(model, one, ["piqa"], data=sources("piqa", file))["results"] for one in (tokenizer, without)
    ]
    assert results[0] == results[1]
    assert without.pad_token is None

"""The model card: every number in it is one of the run's, and the Hub's own reader reads it."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import pretrain_arguments, run
from hub_server import metadata_problems
from hub_users import TOKEN
from huggingface_hub import ModelCard

from hfgpt.hub import push
from hfgpt.hub.card import MARK, CardOptions, carbon, is_by_hand, model_card, own_words
from hfgpt.hub.files import contents
from hfgpt.planner import GPUS
from hfgpt.training.arguments import (
    FinetuneConfig,
    FinetuningArguments,
    PretrainConfig,
    PretrainingArguments,
    parse_arguments,
)
from hfgpt.training.pretrain import pretrain
from hfgpt.training.run_record import finetuning_record, pretraining_record


SESSION = {"device": "NVIDIA H100 80GB HBM3", "devices": 8, "seconds": 3600.0, "on_cpu": False, "cpu_cores": 96}


def card_of(folder: Path, adapter_only: bool = False, base_model: str | None = None, **options) -> ModelCard:
    card = model_card(contents(folder, adapter_only), "kim/film", CardOptions(**options), base_model)
    errors, _ = metadata_problems(str(card))
    assert not errors
    read = ModelCard(str(card))  # as the Hub's client parses it
    assert read.data.to_dict() == card.data.to_dict()
    return read


def test_a_pretraining_run(run_folder):
    results = json.loads((run_folder / "all_results.json").read_text())
    record = json.loads((run_folder / "run.json").read_text())
    card = card_of(run_folder, license="mit")
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert {"hfgpt", "gpt3"} <= set(data.tags)
    scores = {score.metric_type: score.metric_value for score in data.eval_results}
    assert scores == {name: round(results[f"eval_{name}"], 4) for name in ("loss", "perplexity", "bits_per_byte")}
    text = card.text
    assert "![Loss, learning rate and batch over the run](loss_curve.png)" in text
    assert f"{results['train_tokens']:,} tokens were seen in training" in text
    assert "| peak learning rate | 0.003 |" in text and "| warm-up, tokens | 256 |" in text
    assert "cosine to 10% of the peak at 1,536 tokens" in text
    assert "reviews.jsonl" in text and str(run_folder.parent) not in text  # names of files, not where they lie
    assert "Exact duplicates were removed." in text and "40,000 parameters" in text
    session = record["sessions"][-1]
    assert session["device"] in text and session["to_step"] == 12 and session["seconds"] > 0
    watts = 5.0 * session["cpu_cores"]
    grams = sum(part["seconds"] for part in record["sessions"]) * watts / 3.6e6 * 475
    assert data.co2_eq_emissions["emissions"] == pytest.approx(grams, abs=0.0006)
    assert f"torch {record['versions']['torch']}" in text
    assert "has not stated a licence" not in text and "has not stated a licence" in card_of(run_folder).text


def test_the_code_in_it_runs(hub, run_folder, tmp_path):
    push(run_folder, "kim/film")
    text = hub.read("kim/film", "README.md").decode()
    code = text.partition("```python\n")[2].partition("```")[0]
    done = run("-c", code, cwd=tmp_path, **hub.environment(TOKEN, home=tmp_path / "home"))
    assert done.stdout.startswith("Once upon a time")


def evaluation(folder: Path, model: str, value: float, **fields: object) -> None:
    """Put a file as `hfgpt evaluate --output` writes it into a folder that is made."""
    score = {"value": value, "low": 0.5, "high": 0.75}
    result = {"task": "hellaswag", "language": "en", "shots": 20, "rows": 8, "metrics": {"accuracy": score}, **fields}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"model": model, "parameters": 1, "results": [result]}))


def test_scores_of_an_evaluation_beside_the_model(run_folder):
    # By its path, by the end of it as it was scored on another machine, and by its name on the Hub.
    for number, model in enumerate(
        (str(run_folder), "/elsewhere/run", f"../{run_folder.parent.name}/run", "kim/film")
    ):
        evaluation(run_folder / f"evaluation {number}", model, 0.625 + number / 1000)
    card = card_of(run_folder)
    assert "| hellaswag | hellaswag, 20-shot, en | accuracy | 0.625 | 0.5 to 0.75 |" in card.text
    scores = {score.metric_value for score in card.data.eval_results if score.task_name == "hellaswag"}
    assert scores == {0.625, 0.626, 0.627, 0.628}


def test_scores_of_others_are_passed_over(run_folder, model_folder):
    before = str(card_of(run_folder))
    for number, model in enumerate(("gpt2", "lee/run", str(model_folder), "", str(run_folder / "checkpoint-12"))):
        evaluation(run_folder / f"evaluation {number}", model, 0.625)
    for number, fields in enumerate(
        ({"metrics": {"acc": 0.5}}, {"metrics": {"acc": {"value": "high"}}}, {"shots": "few"}, {"task": None})
    ):
        evaluation(run_folder / f"misshapen {number}", str(run_folder), 0.625, **fields)
    others: list[object] = [
        {"model": "run", "results": {"hellaswag": {"acc,none": 0.3}}}, {"model": "run", "results": {"hellaswag": "0.3"}},
        {"results": []}, {"model": {"name": "run"}, "results": []}, [1, 2], "run",
    ]  # fmt: skip
    for number, values in enumerate(others):
        (run_folder / f"harness {number}").mkdir()
        (run_folder / f"harness {number}" / "results.json").write_text(json.dumps(values))
    (run_folder / "results.json").write_text("no JSON")
    assert str(card_of(run_folder)) == before


def test_electricity_of_gpus_and_of_several_sessions():
    found = carbon({"sessions": [SESSION, {**SESSION, "devices": 16, "seconds": 1800.0}]}, grams_per_kwh=100.0)
    assert found["device_hours"] == 16.0
    assert found["kwh"] == pytest.approx(16 * GPUS["h100-80"].power_watts / 1000)
    assert found["grams"] == pytest.approx(found["kwh"] * 100)
    assert found["hardware"] == "8 x NVIDIA H100 80GB HBM3, 16 x NVIDIA H100 80GB HBM3"
    assert carbon({"sessions": [{**SESSION, "device": "Unheard of"}]}) is None
    assert carbon({}) is None


def test_sessions_on_unlike_hardware(run_folder):
    record = json.loads((run_folder / "run.json").read_text())
    cpu = {"device": "Some Processor", "devices": 2, "seconds": 7200.0, "on_cpu": True, "cpu_cores": 16}
    other = {**SESSION, "device": "NVIDIA A100-SXM4-80GB", "devices": 1, "seconds": 60.0}
    record["sessions"] = [SESSION, cpu, other, {**SESSION, "seconds": 1800.0}]
    (run_folder / "run.json").write_text(json.dumps(record))
    results = json.loads((run_folder / "all_results.json").read_text())
    card = card_of(run_folder, carbon_intensity=100)
    part = card.text.partition("## Hardware and carbon\n\n")[2].split("\n\n")
    h100, a100 = (GPUS[name].power_watts for name in ("h100-80", "a100-80"))
    assert part[0] == (
        f"Trained on 8 x NVIDIA H100 80GB HBM3: 90 minutes in 2 sessions, {h100:,.0f} W a GPU as rated. "
        f"{results['train_tokens_per_second']:,.0f} tokens a second, in the last session."
    )
    assert part[1] == "Also on Some Processor, 16 cores, 2 processes: 2.0 hours, 5 W a core assumed."
    assert part[2] == f"Also on 1 x NVIDIA A100-SXM4-80GB: 60 seconds, {a100:,.0f} W a GPU as rated."
    kwh = (8 * 1.5 * h100 + 2 * 16 * 5 + a100 / 60) / 1000
    assert part[3].startswith(
        f"About {kwh:.4g} kWh and {kwh / 10:.4g} kg of CO2 equivalent: an estimate from these powers"
    )
    assert card.data.co2_eq_emissions["emissions"] == round(kwh * 100)
    # Of one alone the power is not known: no estimate, and the others' lines stay.
    record["sessions"][1] = {**SESSION, "device": "Unheard of", "devices": 1}
    (run_folder / "run.json").write_text(json.dumps(record))
    card = card_of(run_folder)
    assert "Also on 1 x Unheard of: 60 minutes.\n" in card.text and "kWh" not in card.text
    assert card.data.get("co2_eq_emissions") is None


def test_a_run_that_goes_on_elsewhere_keeps_its_sessions(corpus, tmp_path):
    def go(output_dir: Path, **fields: object) -> list[dict]:
        argv = pretrain_arguments(
            corpus, output_dir, eval_strategy="no", eval_on_start="false", save_steps=2, **fields
        )
        pretrain(*parse_arguments(PretrainConfig, PretrainingArguments, argv=argv))
        return json.loads((output_dir / "run.json").read_text())["sessions"]

    first, second = tmp_path / "first", tmp_path / "second"
    whole = go(first, max_steps=4)
    [saved] = json.loads((first / "checkpoint-2" / "run.json").read_text())["sessions"]
    assert (saved["from_step"], saved["to_step"]) == (0, 2) and 0 < saved["seconds"] < whole[0]["seconds"]
    shutil.copytree(first / "checkpoint-2", second / "checkpoint-2")
    sessions = go(second, max_steps=4)
    assert [(session["from_step"], session["to_step"]) for session in sessions] == [(0, 2), (2, 4)]
    assert sessions[0] == saved  # what came after that save is not in these weights
    # On the first machine again, which has a longer word of its own session and none of the second's.
    shutil.rmtree(first / "checkpoint-4")
    shutil.copytree(second / "checkpoint-4", first / "checkpoint-4")
    sessions = go(first, max_steps=6)
    assert [session["from_step"] for session in sessions] == [0, 2, 4]
    assert sessions[0] == whole[0]
    # A run that begins anew has none of before.
    assert [session["from_step"] for session in go(first, max_steps=2, resume_from_checkpoint="false")] == [0]


def test_no_secret_of_an_address_is_in_the_record(corpus, tmp_path):
    config, args = parse_arguments(
        PretrainConfig, PretrainingArguments, argv=pretrain_arguments(corpus, tmp_path / "run")
    )
    paths = {
        "https://kim:pass@host.example/secret/a.jsonl?sig=secret#secret": "a.jsonl",
        "s3://key:secret@bucket/secret/b.parquet?versionId=secret": "b.parquet",
        "zip://secret/part-?.jsonl::https://host.example/c.zip?token=secret": "c.zip: part-?.jsonl",
        "zip://d.jsonl::zip://e.zip::https://kim:secret@host.example/f.zip?token=secret": "f.zip: e.zip: d.jsonl",
        "https://kim:secret@host.example?secret": "host.example",
        "/secret/part-[0-9]?.jsonl": "part-[0-9]?.jsonl",
    }
    names = ["a.jsonl?sig=secret#secret", *"bcdef"]  # the first is what a source without a name is called
    sources = [{"name": name, "path": path} for name, path in zip(names, paths)]
    sources.append({"name": "many", "path": [f"https://host.example/{number}.txt?secret" for number in range(5)]})
    sources.append({"name": "hub", "dataset": "kim/reviews"})
    metadata = {"recipe": {"sources": sources}, "sources": {names[0]: {"tokens": 7}}}
    record = pretraining_record(config, args, metadata, 128)
    found = record["data"]["sources"]
    assert [source["from"] for source in found] == [*paths.values(), "0.txt, 1.txt, 2.txt, and 2 more", "kim/reviews"]
    assert found[0]["name"] == "a.jsonl" and found[0]["tokens"] == 7 and found[-1]["hub_dataset"] == "kim/reviews"
    assert "secret" not in json.dumps(record)

    words = {"model_name_or_path": "https://kim:secret@host.example/base?secret", "train_path": next(iter(paths))}
    argv = [part for name, value in words.items() for part in (f"--{name}", value)]
    argv += ["--output_dir", str(tmp_path), "--test_fraction", "0.5"]
    config, arguments = parse_arguments(FinetuneConfig, FinetuningArguments, argv=argv)
    record = finetuning_record(config, arguments, "/secret/task.yaml", 8)
    assert (record["base_model"], record["task"]) == ("base", "task.yaml")
    assert record["data"] == {"from": "a.jsonl", "hub_dataset": None} and "secret" not in json.dumps(record)
    config.model_name_or_path, config.dataset = "kim/base", str(tmp_path)
    record = finetuning_record(config, arguments, "sentiment", 8)
    assert (record["base_model"], record["task"]) == ("kim/base", "sentiment")
    assert record["data"] == {"from": tmp_path.name, "hub_dataset": None}


def test_what_a_person_wrote_stays(hub, model_folder):
    words = "---\nlicense: cc-by-4.0\nlanguage: ko\n---\n# My film\n\nWritten by hand.\n"
    (model_folder / "README.md").write_text(words)
    push(model_folder, "kim/film", license="mit")
    card = ModelCard(hub.read("kim/film", "README.md").decode())
    assert card.text.strip() == "# My film\n\nWritten by hand."
    assert (card.data.license, card.data.language, card.data.library_name) == ("cc-by-4.0", "ko", "transformers")
    assert (model_folder / "README.md").read_text() == words

    (model_folder / "README.md").unlink()
    done = push(model_folder, "kim/film")
    assert "Written by hand." in hub.read("kim/film", "README.md").decode()
    assert any("written by hand and stays" in note for note in done.notes)
    push(model_folder, "kim/film", overwrite=True)
    text = hub.read("kim/film", "README.md").decode()
    assert MARK in text and ModelCard(text).data.license == "cc-by-4.0"  # the licence is not lost


HEAD = "---\nlicense: Apache-2.0\nthumbnail: film.png\nlibrary_name: other\n---\n"


@pytest.mark.parametrize("text", [HEAD, f"\n{HEAD}\n  \n", HEAD.replace("\n", "\r\n"), HEAD.rstrip(), "---\n---\n"])
def test_a_head_alone_is_no_card_by_hand(text):
    assert not is_by_hand(text)
    assert is_by_hand(f"{text}\n\n# My film\n")


def test_what_a_head_alone_says_is_kept_where_ours_says_nothing(model_folder):
    kept = {"license": "Apache-2.0", "thumbnail": "film.png", "library_name": "other", "widget": [{"text": "A film"}]}
    card = card_of(model_folder, kept_metadata=kept)
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert card.data.thumbnail == "film.png" and card.data.widget == [{"text": "A film"}]
    assert "has not stated a licence" not in card.text
    (model_folder / "README.md").write_text(HEAD)
    assert own_words(model_folder) is None
    card = card_of(model_folder)
    assert (card.data.license, card.data.library_name, card.data.thumbnail) == (
        "apache-2.0",
        "transformers",
        "film.png",
    )
    # Another licence, with which the other's name and text go.
    kept = {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    assert card_of(model_folder.rename(model_folder.with_name("a")), kept_metadata=kept).data.license == "apache-2.0"
    (model_folder.with_name("a") / "README.md").unlink()
    card = card_of(model_folder.with_name("a"), kept_metadata=kept)
    assert (card.data.license, card.data.license_name) == ("other", "mine")
    card = card_of(model_folder.with_name("a"), license="MIT", kept_metadata=kept)
    assert card.data.license == "mit" and card.data.get("license_name") is None


def usage(card: ModelCard) -> str:
    text = card.text.partition("## How to use\n\n")[2].partition("\n## ")[0]
    compile(text.partition("```python\n")[2].partition("```")[0], "the card's code", "exec")
    return text


def test_usage_names_a_tokenizer_that_is_there(adapter_folder, model_folder):
    text = usage(card_of(adapter_folder, base_model="kim/base"))
    assert 'AutoTokenizer.from_pretrained("kim/film")' in text and "hfgpt generate kim/film" in text
    text = usage(card_of(adapter_folder, adapter_only=True, base_model="kim/base"))
    assert 'AutoTokenizer.from_pretrained("kim/base")' in text and "hfgpt " not in text.partition("```python")[2][30:]
    text = usage(card_of(adapter_folder, adapter_only=True))
    assert "AutoTokenizer" not in text and "`tokenizer` is the one that the model was trained with" in text
    for path in model_folder.glob("tokenizer*"):
        path.unlink()
    text = usage(card_of(model_folder))
    assert "AutoTokenizer" not in text and "hfgpt generate" not in text


def test_a_model_that_does_not_write_is_evaluated(adapter_folder):
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    (adapter_folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "SEQ_CLS"}))
    assert "in a terminal" not in usage(card_of(adapter_folder))  # of whose task nothing is known
    task = {"name": "sentiment", "prompt": "Review: {text}\nSentiment:", "metrics": ["accuracy"]}
    (adapter_folder / "task.json").write_text(json.dumps({"kind": "choice", "language": "en", "task": task}))
    text = usage(card_of(adapter_folder))
    assert "hfgpt generate" not in text and "```bash\nhfgpt evaluate kim/film --data FILE" in text
    assert "hfgpt evaluate" not in usage(card_of(adapter_folder, adapter_only=True, base_model="kim/base"))


def test_a_folder_without_a_run_has_a_card_without_one(model_folder):
    text = card_of(model_folder).text
    for section in ("## Training", "## Evaluation", "## Hardware"):
        assert section not in text
    assert "2 layers, 32 wide, 2 heads" in text and "1 dense and 1 banded layers (window of 16 tokens)" in text


@pytest.mark.parametrize("name", ["run.json", "all_results.json"])
def test_a_damaged_file_is_named(run_folder, name):
    (run_folder / name).write_text('{"kind": ')
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        card_of(run_folder)

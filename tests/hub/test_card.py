"""The model card: every number in it is one of the run's, and the Hub's own reader reads it."""

import json
from pathlib import Path

import pytest
from helpers import run
from hub_server import metadata_problems
from hub_users import TOKEN
from huggingface_hub import ModelCard

from hfgpt.hub import push
from hfgpt.hub.card import MARK, CardOptions, carbon, model_card
from hfgpt.hub.files import contents
from hfgpt.planner import GPUS


def card_of(folder: Path, **options) -> ModelCard:
    card = model_card(contents(folder), "kim/film", CardOptions(**options))
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


def test_scores_of_an_evaluation_beside_the_model(run_folder):
    (run_folder / "evaluation").mkdir()
    score = {"value": 0.625, "low": 0.5, "high": 0.75}
    result = {"task": "hellaswag", "language": "en", "shots": 20, "rows": 8, "metrics": {"accuracy": score}}
    (run_folder / "evaluation" / "results.json").write_text(json.dumps({"model": "x", "results": [result]}))
    card = card_of(run_folder)
    assert "| hellaswag | hellaswag, 20-shot, en | accuracy | 0.625 | 0.5 to 0.75 |" in card.text
    assert ("hellaswag", 0.625) in {(score.task_name, score.metric_value) for score in card.data.eval_results}


def test_electricity_of_gpus_and_of_several_sessions():
    session = {"device": "NVIDIA H100 80GB HBM3", "devices": 8, "seconds": 3600.0, "on_cpu": False, "cpu_cores": 96}
    found = carbon({"sessions": [session, {**session, "devices": 16, "seconds": 1800.0}]}, grams_per_kwh=100.0)
    assert found["device_hours"] == 16.0
    assert found["kwh"] == pytest.approx(16 * GPUS["h100-80"].power_watts / 1000)
    assert found["grams"] == pytest.approx(found["kwh"] * 100)
    assert found["hardware"] == "8 x NVIDIA H100 80GB HBM3, 16 x NVIDIA H100 80GB HBM3"
    assert carbon({"sessions": [{**session, "device": "Unheard of"}]}) is None
    assert carbon({}) is None


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

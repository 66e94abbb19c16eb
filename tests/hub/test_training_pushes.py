"""Trainer's own pushes during a run, and a run that goes on from the Hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import SENTIMENT, pretrain_arguments
from hub_users import READ_TOKEN, TOKEN
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hfgpt.hub import HubError, push
from hfgpt.training.arguments import (
    FinetuneConfig,
    FinetuningArguments,
    PretrainConfig,
    PretrainingArguments,
    parse_arguments,
)
from hfgpt.training.finetune import finetune
from hfgpt.training.pretrain import pretrain


def run_pretraining(corpus: Path, output_dir: Path, **fields: object) -> dict:
    argv = pretrain_arguments(corpus, output_dir, eval_strategy="no", eval_on_start="false", logging_steps=4, **fields)
    return pretrain(*parse_arguments(PretrainConfig, PretrainingArguments, argv=argv))


def run_finetuning(model: Path, reviews: Path, output_dir: Path, **fields: object) -> dict:
    values = {
        "model_name_or_path": model, "train_path": reviews, "output_dir": output_dir, "max_steps": 4, "bf16": "false",
        "use_cpu": "true", "max_train_rows": 32, "max_test_rows": 16, **SENTIMENT, **fields,
    }  # fmt: skip
    argv = []
    for name, value in values.items():
        argv += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return finetune(*parse_arguments(FinetuneConfig, FinetuningArguments, argv=argv))


def test_a_run_pushes_as_it_goes_and_goes_on_elsewhere(hub, corpus, tmp_path):
    """Half a run on one machine, pushed; the other half on another; the same weights as a run that was never moved."""
    whole = tmp_path / "whole"
    run_pretraining(corpus, whole)
    first = tmp_path / "first"
    pushed = {
        "push_to_hub": "true",
        "hub_model_id": "kim/run",
        "hub_strategy": "checkpoint",
        "hub_always_push": "true",
    }
    pushed["hub_token"] = TOKEN
    run_pretraining(corpus, first, max_steps=8, **pushed)
    files = hub.files("kim/run")
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json", "all_results.json", "run.json"} <= set(
        files
    )
    assert "last-checkpoint/optimizer.pt" in files and "last-checkpoint/manifest.json" in files
    assert json.loads(hub.read("kim/run", "last-checkpoint/trainer_state.json"))["global_step"] == 8
    assert not {"training_args.bin", "trainer_state.json", ".lock", "samples.jsonl"} & set(files)
    assert hub.token_leaks(TOKEN) == []
    for file in [*first.rglob("*")]:
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
    there = AutoModelForCausalLM.from_pretrained("kim/run").state_dict()
    saved = load_file(first / "model.safetensors")
    assert all(torch.equal(there[name], value) for name, value in saved.items())
    assert not list((first / ".pushing").iterdir())

    shutil.rmtree(first)
    second = tmp_path / "second"
    run_pretraining(corpus, second, resume_from_hub="kim/run")
    state = json.loads((second / "trainer_state.json").read_text())
    assert min(entry["step"] for entry in state["log_history"]) == 4  # the history of before is there
    run = json.loads((second / "run.json").read_text())
    assert [session["from_step"] for session in run["sessions"]] == [8]
    expected, found = load_file(whole / "model.safetensors"), load_file(second / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    # Again, where the folder has what the repository has: nothing is brought.
    before = len([request for request in hub.requests if "/lfs/" in request.path])
    run_pretraining(corpus, second, resume_from_hub="kim/run@main")
    assert len([request for request in hub.requests if "/lfs/" in request.path]) == before


def test_a_checkpoint_that_is_damaged_on_the_hub_is_not_resumed_from(hub, pretrained, corpus, tmp_path):
    from huggingface_hub import HfApi

    checkpoint = max(pretrained.glob("checkpoint-*"))
    push(checkpoint, "kim/run")
    HfApi().upload_file(
        path_or_fileobj=b"other weights", path_in_repo=f"{checkpoint.name}/model.safetensors", repo_id="kim/run"
    )
    with pytest.raises(ValueError, match=r"checkpoint-\d+ of kim/run is not whole \(model.safetensors has 13 bytes"):
        run_pretraining(corpus, tmp_path / "run", resume_from_hub="kim/run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    push(pretrained, "kim/model")
    with pytest.raises(ValueError, match="kim/model has no checkpoint to resume from"):
        run_pretraining(corpus, tmp_path / "run", resume_from_hub="kim/model")
    with pytest.raises(ValueError, match="contradict each other"):
        run_pretraining(corpus, tmp_path / "run", resume_from_hub="kim/run", resume_from_checkpoint="false")


def test_a_hub_that_refuses_at_the_start_stops_the_run_before_any_work(hub, corpus, tmp_path):
    for token, words in (("hf_nobodyKnowsThisToken", "does not know this token"), (READ_TOKEN, "may not write there")):
        with pytest.raises(HubError, match=words) as refused:
            run_pretraining(corpus, tmp_path / "run", push_to_hub="true", hub_model_id="kim/run", hub_token=token)
        assert token not in str(refused.value)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_hub_that_fails_meanwhile_costs_the_run_nothing(hub, corpus, tmp_path, caplog):
    folder = tmp_path / "run"
    hub.fail_next("POST", "/api/models/kim/run/commit", status=400, times=1000, message="no room")
    with pytest.raises(HubError, match=r"no room.*The run is whole in .*hfgpt push"):
        run_pretraining(
            corpus,
            folder,
            max_steps=4,
            push_to_hub="true",
            hub_model_id="kim/run",
            hub_always_push="true",
            save_steps=2,
        )
    assert (folder / "all_results.json").is_file() and (folder / "model.safetensors").is_file()
    hub.clear()
    assert "model.safetensors" in push(folder, "kim/run").files


def test_fine_tuning_pushes_its_adapter_with_scores(hub, pretrained, reviews_file, tmp_path):
    base = Path(shutil.copytree(pretrained, tmp_path / "base"))
    options = {"use_peft": "true", "push_to_hub": "true", "hub_model_id": "kim/lora"}
    with pytest.raises(ValueError, match="--base-model"):
        run_finetuning(base, reviews_file, tmp_path / "lora", **options)
    push(base, "kim/base")
    metrics = run_finetuning(base, reviews_file, tmp_path / "lora", **options)
    files = set(hub.files("kim/lora"))
    assert {"adapter_model.safetensors", "adapter_config.json", "task.json", "README.md", "loss_curve.png"} <= files
    assert "predictions.jsonl" not in files  # of people's reviews
    assert json.loads(hub.read("kim/lora", "adapter_config.json"))["base_model_name_or_path"] == "kim/base"
    text = hub.read("kim/lora", "README.md").decode()
    assert f"value: {round(metrics['eval_accuracy'], 4)}" in text and "base_model: kim/base" in text


def test_fine_tuning_goes_on_where_the_base_lies_elsewhere(hub, pretrained, reviews_file, tmp_path):
    first = Path(shutil.copytree(pretrained, tmp_path / "one machine"))
    common = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 3}
    run_finetuning(first, reviews_file, tmp_path / "first", **common)
    push(tmp_path / "first" / "checkpoint-2", "kim/checkpoint")
    second = Path(shutil.copytree(pretrained, tmp_path / "another"))
    run_finetuning(second, reviews_file, tmp_path / "second", resume_from_hub="kim/checkpoint", **common)
    expected = load_file(tmp_path / "first" / "model.safetensors")
    found = load_file(tmp_path / "second" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    other = AutoModelForCausalLM.from_pretrained(second)
    with torch.no_grad():
        other.model.norm.weight.add_(1.0)
    other.save_pretrained(second)
    with pytest.raises(ValueError, match="the weights of `model_name_or_path` are others"):
        run_finetuning(second, reviews_file, tmp_path / "second", **common)

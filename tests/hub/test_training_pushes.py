"""Trainer's own pushes during a run, and a run that goes on from the Hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SENTIMENT, TINY_MODEL, pretrain_arguments, run
from hub_users import OTHER_TOKEN, READ_TOKEN, TOKEN, UNKNOWN_TOKEN
from huggingface_hub import HfApi
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
from hfgpt.training.checkpoints import why_incomplete
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
    assert [session["from_step"] for session in run["sessions"]] == [0, 8]
    expected, found = load_file(whole / "model.safetensors"), load_file(second / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    # Again, where the folder has what the repository has: nothing is brought.
    before = len([request for request in hub.requests if "/lfs/" in request.path])
    run_pretraining(corpus, second, resume_from_hub="kim/run@main")
    assert len([request for request in hub.requests if "/lfs/" in request.path]) == before


def test_a_checkpoint_that_is_damaged_on_the_hub_is_not_resumed_from(hub, pretrained, corpus, tmp_path):
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
    for token, words in ((UNKNOWN_TOKEN, "does not know this token"), (READ_TOKEN, "may not write there")):
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


def test_two_processes_push_and_learn_of_a_refusal_together(hub, model_folder, tmp_path):
    run(
        "-m", "torch.distributed.run", "--nproc_per_node", 2, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
        ROOT / "tests" / "hub" / "pushing_checks.py", tmp_path, model_folder,
        **hub.environment(TOKEN, home=tmp_path / "home"),
    )  # fmt: skip
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["repo"] == "kim/two" and "may not write there" in found[0]["refused"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files("kim/two"))


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_what_each_strategy_pushes_in_the_order_of_the_steps(hub, corpus, tmp_path, strategy):
    folder = tmp_path / "run"
    run_pretraining(
        corpus, folder, max_steps=6, save_steps=2, push_to_hub="true", hub_model_id="kim/run", hub_strategy=strategy,
        hub_always_push="true",
    )  # fmt: skip
    titles = [commit.title for commit in HfApi().list_repo_commits("kim/run")][::-1]
    progress = [title for title in titles if title.startswith("Training in progress")]
    assert progress == ([] if strategy == "end" else [f"Training in progress, step {step}" for step in (2, 4, 6)])
    assert titles[-1] == "End of training"
    folders = {name.partition("/")[0] for name in hub.files("kim/run") if "/" in name}
    expected = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {f"checkpoint-{step}" for step in (2, 4, 6)}}
    assert folders == expected.get(strategy, set())
    for name in folders:  # as they were saved: a run goes on from them
        snapshot = Path(HfApi().snapshot_download("kim/run", allow_patterns=f"{name}/*")) / name
        assert why_incomplete(snapshot) is None
    assert not (folder / ".pushing").exists() or not list((folder / ".pushing").iterdir())


def test_a_run_does_not_take_another_models_name(hub, model_folder, pretrained, reviews_file, corpus, tmp_path):
    base = Path(shutil.copytree(pretrained, tmp_path / "base"))
    push(base, "kim/base")
    before = hub.files("kim/base")
    with pytest.raises(HubError, match="taken by a model, and this is an adapter"):
        run_finetuning(
            base, reviews_file, tmp_path / "lora", use_peft="true", push_to_hub="true", hub_model_id="kim/base"
        )
    with pytest.raises(HubError, match=r"taken by another model \(num_hidden_layers 2, not 1\)"):
        run_pretraining(
            corpus, tmp_path / "other", push_to_hub="true", hub_model_id="kim/base",
            model_overrides=json.dumps({**TINY_MODEL, "num_hidden_layers": 1}),
        )  # fmt: skip
    assert hub.files("kim/base") == before
    with pytest.raises(HubError, match="is there already and is public"):
        run_pretraining(
            corpus, tmp_path / "other", push_to_hub="true", hub_model_id="kim/base", hub_private_repo="true"
        )


def test_a_token_in_the_runs_record_is_not_pushed_by_the_run_either(hub, corpus, tmp_path):
    folder = tmp_path / "run"
    options = {"push_to_hub": "true", "hub_model_id": "kim/run", "hub_strategy": "end", "max_steps": 4}
    run_pretraining(corpus, folder, **options)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "README.md").write_text(f"# Mine\n\n{OTHER_TOKEN} {sorted(config)}\n")
    with pytest.raises(HubError, match=r"README.md holds what looks like a token"):
        run_pretraining(corpus, folder, **{**options, "max_steps": 8})
    assert OTHER_TOKEN.encode() not in b"".join(hub.read("kim/run", name) for name in hub.files("kim/run"))

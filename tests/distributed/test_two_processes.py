"""Two real processes over gloo do what one does."""

import json

import pytest
from helpers import pretrain_arguments, run


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def test_two_processes_train_as_one(pretrained, corpus, tmp_path):
    run(
        "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu-ddp.yaml", "--main_process_port", "0",
        "recipes/pretrain.py",
        *pretrain_arguments(corpus, tmp_path, per_device_train_batch_size=2, save_strategy="no"),
    )  # fmt: skip
    results = json.loads((tmp_path / "all_results.json").read_text())
    alone = json.loads((pretrained / "all_results.json").read_text())
    assert results["train_tokens"] == alone["train_tokens"]
    assert losses(tmp_path) == pytest.approx(losses(pretrained), abs=2e-4)
    assert results["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-4)

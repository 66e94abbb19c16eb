"""Training under ZeRO-3 in two processes, by the recipes and the shipped launch files, is training in one.

The initial weights, the losses of 50 steps, and what is saved: whole, equal to what the processes held together.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from checks import launch_checks, numbers
from helpers import launch, pretrain_arguments, run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfgpt.generation import generate, load
from hfgpt.training.zero import ZeroCheckpoint, ZeroLayout, consolidate


pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the package deepspeed")

CHECKS = Path(__file__).parent / "zero3_training_checks.py"
STEPS = 50
TOKENS = {"train_tokens": STEPS * 4 * 32, "warmup_tokens": 5 * 4 * 32, "decay_tokens": STEPS * 4 * 32}


def launch_zero3(recipe: str, record: Path, *arguments: str) -> None:
    """Run a recipe in two processes by the shipped files, and write down what they held when they saved."""
    run(
        "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/zero3.yaml", "--num_processes", "2",
        "--main_process_port", "0", CHECKS, "--recipe", recipe, record, *arguments,
        HF_HUB_OFFLINE="1",
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def described(file: Path) -> dict[str, list]:
    """Shape, type and hash of each tensor of a file."""
    return {
        name: [list(t.shape), str(t.dtype), hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest()]
        for name, t in load_file(file).items()
    }


def gathered(record: Path) -> dict[str, list]:
    """What the processes held together; each held a part of most."""
    entries = json.loads(record.read_text())
    assert entries, "nothing was trained"
    assert any(partitioned for *_, partitioned in entries.values())
    return {name.replace(".default", ""): entry for name, (*entry, _) in entries.items()}


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return launch_checks(CHECKS.name, tmp_path_factory.mktemp("initial"), DS_ACCELERATOR="cpu")


@pytest.fixture(scope="module")
def partitioned(corpus, tmp_path_factory) -> Path:
    """A float32 run of 50 steps, two processes, with its record beside it."""
    folder = tmp_path_factory.mktemp("zero3") / "model"
    fields = dict(TOKENS, per_device_train_batch_size=2, use_cpu="false", save_steps=STEPS, eval_steps=STEPS)
    launch_zero3("recipes/pretrain.py", folder.parent / "record.json", *pretrain_arguments(corpus, folder, **fields))
    return folder


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_initial_weights_made_in_partitions_are_those_of_the_whole_model(initial, head):
    """Bit for bit from the same seed, and as the paper says: checked on the gathered weights."""
    found = numbers(initial, head)
    assert found["not partitioned"] == found["names differ"] == 0
    assert found["tied"] == (head == "tied")
    assert found["matrix"] < 0.02
    assert found["residual"] < 0.02
    assert found["mean"] < 4
    assert found["bias"] == found["norm"] == 0
    assert found["other than whole"] == 0


def test_losses_of_50_steps_are_those_of_one_process(partitioned, corpus, tmp_path):
    launch(
        "recipes/pretrain.py",
        *pretrain_arguments(corpus, tmp_path, **TOKENS, save_strategy="no", eval_steps=STEPS),
        HF_HUB_OFFLINE="1",
    )
    alone = losses(tmp_path)
    assert len(alone) == STEPS
    assert alone[0] - alone[-1] > 1
    assert losses(partitioned) == pytest.approx(alone, abs=2e-4)  # logged to 4 digits


def test_saved_model_is_what_the_processes_held(partitioned, tmp_path):
    """Every name, shape, type and number; in the checkpoint too, and in the model made whole from its shards."""
    held = gathered(partitioned.parent / "record.json")
    assert described(partitioned / "model.safetensors") == held
    checkpoint = partitioned / f"checkpoint-{STEPS}"
    assert described(checkpoint / "model.safetensors") == held
    assert ZeroCheckpoint(checkpoint).layout == ZeroLayout(world_size=2, stage=3)
    (checkpoint / "model.safetensors").rename(tmp_path / "gathered")  # as where gathering is off
    consolidate(checkpoint, tmp_path / "whole")
    (tmp_path / "gathered").rename(checkpoint / "model.safetensors")
    assert described(tmp_path / "whole" / "model.safetensors") == held
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (partitioned, tmp_path / "whole")]
    assert sizes[0] == sizes[1]


def test_bfloat16_run_from_prepared_shards_generates(corpus, tmp_path):
    folder = tmp_path / "model"
    fields = {"per_device_train_batch_size": 2, "use_cpu": "false", "bf16": "true", "eval_strategy": "no"}
    launch_zero3("recipes/pretrain.py", tmp_path / "record.json", *pretrain_arguments(corpus, folder, **fields))
    held = gathered(tmp_path / "record.json")
    assert {kind for _, kind, _ in held.values()} == {"torch.bfloat16"}
    assert described(folder / "model.safetensors") == held
    model, tokenizer = load(str(folder / "checkpoint-12"))
    assert generate(model, tokenizer, "The film", 5)
    # What was trained is finer than what is saved.
    consolidate(folder / "checkpoint-12", tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    rounded = load_file(folder / "checkpoint-12" / "model.safetensors")
    assert all(torch.equal(whole[name].bfloat16(), rounded[name]) for name in rounded)
    assert not all(torch.equal(whole[name], rounded[name].float()) for name in rounded)


@pytest.mark.parametrize("peft", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_fine_tuning_saves_what_was_trained(partitioned, reviews_file, tmp_path, peft):
    """The adapter is not empty, not the initial one, and generates (peft saved empty ones under ZeRO-3 for long).

    13 rows of 2 processes, scored one at a time: one process has a row more than the other.
    """
    folder = tmp_path / "model"
    fields = {
        "model_name_or_path": partitioned,
        "output_dir": folder,
        "train_path": reviews_file,
        "label_field": "verdict",
        "label_map": '{"fresh": "positive", "rotten": "negative"}',
        "test_fraction": 0.2,
        "group_by": "film",
        "max_train_rows": 48,
        "max_test_rows": 13,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 1,
        "num_train_epochs": 1,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "bf16": "false",
        "use_peft": str(peft == "lora").lower(),
    }
    words = [word for key, value in fields.items() for word in (f"--{key}", str(value))]
    launch_zero3("recipes/finetune.py", tmp_path / "record.json", *words)
    held = gathered(tmp_path / "record.json")
    file = folder / ("adapter_model.safetensors" if peft == "lora" else "model.safetensors")
    assert described(file) == held
    if peft == "lora":
        trained = load_file(file)
        second = [tensor for name, tensor in trained.items() if "lora_B" in name]
        assert second and all(tensor.abs().max() > 0 for tensor in second)  # they begin at zero
    results = json.loads((folder / "all_results.json").read_text())
    assert results["test_rows"] == 13
    model, tokenizer = load(str(folder))
    assert generate(model, tokenizer, "The film", 5)
    base = AutoModelForCausalLM.from_pretrained(partitioned)
    ids = AutoTokenizer.from_pretrained(partitioned)("The film was", return_tensors="pt").input_ids
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, base(ids).logits, atol=1e-3)

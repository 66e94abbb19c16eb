"""Checkpoints of ZeRO: made whole offline, and resumed on another number of processes, at another stage, or without it.

A run of two processes, resumed by one, resumed by two, in three launches of distributed/zero_resume_steps.py for all
cases; the tests read its numbers and its checkpoints.
"""

import contextlib
import importlib.util
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.cli import main
from hfgpt.training.zero import (
    ZeroCheckpoint,
    ZeroLayout,
    consolidate,
    load_unpartitioned,
    saved_layout,
)


pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the package deepspeed")

SCRIPT = Path(__file__).parent.parent / "distributed" / "zero_resume_steps.py"
PHASES = {"first": 2, "second": 1, "third": 2}
CASES = [
    "stage 2",
    "stage 3, odd sizes in small groups",
    "stage 3, bfloat16",
    "stages 3, 1, 2",
    "stages 2, 3, 3 offloaded",
    "stages 1, none, 2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What all phases left."""
    folder = tmp_path_factory.mktemp("resumed")
    for phase, processes in PHASES.items():
        run(
            "-m", "torch.distributed.run", "--nproc_per_node", processes, "--rdzv_backend", "c10d",
            "--rdzv_endpoint", "localhost:0", SCRIPT, folder, phase,
            HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu",
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def results(folder) -> dict[str, dict]:
    return {phase: json.loads((folder / f"{phase}.json").read_text()) for phase in PHASES}


def make_checkpoint(folder: Path, case: str, target: Path) -> Path:
    """A copy of a case's first checkpoint with the config beside, as the Trainer writes it."""
    place = folder / case.replace(" ", "_")
    shutil.copytree(place / "first", target)
    shutil.copy(place / "start" / "config.json", target)
    return target


@pytest.mark.parametrize("case", CASES)
def test_losses_of_a_run_resumed_by_1_and_by_2_processes_are_the_undisturbed_run_s(results, case):
    found = [loss for phase in PHASES for loss in results[phase][case]["losses"]]
    undisturbed = results["first"][case]["undisturbed"]
    assert len(found) == len(undisturbed) == 6
    assert found == pytest.approx(undisturbed, abs=1e-2 if "bfloat16" in case else 5e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("phase", ["second", "third"])
def test_resumed_state_is_the_saved_one(results, case, phase):
    found = results[phase][case]
    assert found["steps"] == {"second": 2, "third": 4}[phase]
    if "weights" in found:
        assert found["weights"] == 0
        assert found["hyperparameters"] == 0
        assert found["moments"] < 1e-6  # sums


@pytest.mark.parametrize(
    ("case", "stage"), [("stage 2", 2), ("stage 3, odd sizes in small groups", 3), ("stages 1, none, 2", 1)]
)
def test_layout_is_read_from_the_shards(folder, case, stage):
    checkpoint = folder / case.replace(" ", "_") / "first"
    assert saved_layout(checkpoint) == ZeroLayout(world_size=2, stage=stage)
    assert saved_layout(checkpoint).world_size == 2
    assert saved_layout(next(checkpoint.glob("global_step*"))) == saved_layout(checkpoint)
    assert saved_layout(checkpoint.parent / "start") is None
    assert saved_layout("no/such/folder") is None


@pytest.mark.parametrize(
    "case", ["stage 2", "stage 3, odd sizes in small groups", "stage 3, bfloat16", "stages 1, none, 2"]
)
def test_whole_weights_are_those_of_zero_to_fp32(folder, tmp_path, case):
    """DeepSpeed's own reader as the reference; a tied weight is written once."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    checkpoint = make_checkpoint(folder, case, tmp_path / "checkpoint")
    with contextlib.redirect_stdout(io.StringIO()):
        expected = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    assert expected.pop("lm_head.weight") is not None
    done = consolidate(checkpoint, tmp_path / "whole")
    found = load_file(tmp_path / "whole" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert (done.tensors, done.parameters) == (len(found), sum(tensor.numel() for tensor in found.values()))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert model.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, found["model.embed_tokens.weight"])


def test_command_writes_parts_in_the_type_asked_for(folder, tmp_path, capsys):
    checkpoint = make_checkpoint(folder, "stages 3, 1, 2", tmp_path / "checkpoint")
    words = ["--to", "gpt3", "--dtype", "bfloat16", "--max-shard-size", "20KB", "--json"]
    assert main(["convert", str(checkpoint), str(tmp_path / "whole"), *words]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["dtype"] == "bfloat16"
    assert done["notes"] == ["made whole from ZeRO-3 of 2 processes"]
    files = sorted((tmp_path / "whole").glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((tmp_path / "whole" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * done["parameters"]
    shards = ZeroCheckpoint(checkpoint)
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert stored.keys() == shards.shapes.keys() == index["weight_map"].keys()
    assert all(torch.equal(stored[name], shards.read(name).bfloat16()) for name in stored)
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole")


def test_command_turns_a_dense_model_s_shards_into_gpt2(folder, tmp_path):
    checkpoint = make_checkpoint(folder, "stage 2", tmp_path / "checkpoint")
    assert main(["convert", str(checkpoint), str(tmp_path / "banded"), "--to", "gpt2"]) == 2
    assert not (tmp_path / "banded").exists()
    config = GPT3Config.from_pretrained(checkpoint)
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.save_pretrained(checkpoint)
    assert main(["convert", str(checkpoint), str(tmp_path / "gpt2"), "--to", "gpt2"]) == 0
    consolidate(checkpoint, tmp_path / "gpt3")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        logits = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")(ids).logits
        expected = GPT3ForCausalLM.from_pretrained(tmp_path / "gpt3")(ids).logits
    torch.testing.assert_close(logits, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "gpt2", "gpt3"]


@pytest.mark.parametrize("kind", ["optim_states", "model_states"])
def test_damaged_file_is_named(folder, tmp_path, capsys, kind):
    checkpoint = make_checkpoint(folder, "stage 3, bfloat16", tmp_path / "checkpoint")
    file = sorted(checkpoint.glob(f"global_step*/*{kind}.pt"))[0 if kind == "model_states" else 1]
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["convert", str(checkpoint), str(tmp_path / "whole"), "--to", "gpt3"]) == 2
    message = capsys.readouterr().err
    assert str(file) in message
    assert "cut short or damaged" in message
    assert not (tmp_path / "whole").exists()


def test_missing_shard_is_told(folder, tmp_path):
    checkpoint = make_checkpoint(folder, "stage 3, bfloat16", tmp_path / "checkpoint")
    next(checkpoint.glob("global_step*/*rank_1*optim_states.pt")).unlink()
    with pytest.raises(ValueError, match=r"written by 2 processes and holds the optimizer states of 1"):
        consolidate(checkpoint, tmp_path / "whole")


def test_file_of_other_objects_is_not_unpickled(folder, tmp_path):
    checkpoint = make_checkpoint(folder, "stage 3, bfloat16", tmp_path / "checkpoint")
    file = next(checkpoint.glob("global_step*/*rank_0*optim_states.pt"))
    torch.save({"optimizer_state_dict": {"partition_count": Path("anything")}}, file)
    with pytest.raises(ValueError, match="Cannot read"):
        ZeroCheckpoint(checkpoint)


def test_checkpoint_of_another_model_is_refused(folder, tmp_path):
    checkpoint = make_checkpoint(folder, "stage 2", tmp_path / "checkpoint")
    config = GPT3Config.from_pretrained(checkpoint)
    for field, value, word in (("vocab_size", 98, "embed_tokens"), ("num_hidden_layers", 3, "layers.3")):
        other = GPT3Config.from_dict({**config.to_dict(), field: value, "layer_types": None})
        other.architectures = config.architectures
        other.save_pretrained(checkpoint)
        with pytest.raises(ValueError, match=rf"does not fit its config.json.*{word}"):
            consolidate(checkpoint, tmp_path / "whole")
    model = GPT3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())  # one group, of all parameters
    with pytest.raises(ValueError, match="parameter groups hold other parameters"):
        load_unpartitioned(model, optimizer, checkpoint)


def test_folder_in_use_is_left_alone(folder, tmp_path):
    checkpoint = make_checkpoint(folder, "stage 2", tmp_path / "checkpoint")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        consolidate(checkpoint, tmp_path / "whole")
    with pytest.raises(ValueError, match="is or holds the source"):
        consolidate(checkpoint, checkpoint, overwrite=True)

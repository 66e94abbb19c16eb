"""The shipped accelerate files, launched: two processes over gloo train as one, sharded in each of the ways.

The same files are for GPUs; hfgpt/training/processes.py is what makes them run on processors.
"""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import ROOT, pretrain_arguments, run
from safetensors.torch import load_file


WAYS = ["ddp", "fsdp2"]
if importlib.util.find_spec("deepspeed") is not None:
    WAYS += ["zero1", "zero2", "zero3", "zero3_offload"]
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    """Output folder of a run in each way; two at a time, as launchers mostly wait."""
    root = tmp_path_factory.mktemp("launch")

    def train(way):
        folder = root / way
        run(
            "-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{way}.yaml",
            "--num_processes", "2", "--main_process_port", "0", "recipes/pretrain.py",
            *pretrain_arguments(
                corpus, folder, use_cpu="false", per_device_train_batch_size=2, save_strategy="no", eval_on_start="false"
            ),
        )  # fmt: skip
        return folder

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(WAYS, pool.map(train, WAYS)))


def history(folder, name):
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in entries if name in entry}


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("zero3")])
def test_two_processes_train_as_one(folders, pretrained, way):
    assert history(folders[way], "loss") == pytest.approx(history(pretrained, "loss"), abs=TOLERANCE)
    assert history(folders[way], "eval_loss")[12] == pytest.approx(history(pretrained, "eval_loss")[12], abs=TOLERANCE)


@pytest.mark.skipif("zero3" not in WAYS, reason="needs the package deepspeed")
def test_zero3_learns_with_and_without_offload_alike(folders, pretrained):
    """Its random weights are drawn in another order than those of one process, so the curves are near, not equal."""
    losses = history(folders["zero3"], "loss")
    assert history(folders["zero3_offload"], "loss") == pytest.approx(losses, abs=TOLERANCE)
    assert losses == pytest.approx(history(pretrained, "loss"), abs=0.1)
    assert losses[12] < losses[1] - 0.5


@pytest.mark.parametrize("way", WAYS)
def test_the_saved_model_is_whole(folders, pretrained, way):
    from transformers import AutoModelForCausalLM

    import hfgpt  # noqa: F401

    model, problems = AutoModelForCausalLM.from_pretrained(folders[way], output_loading_info=True)
    assert not any(problems.values()), problems
    expected = load_file(pretrained / "model.safetensors")
    found = load_file(folders[way] / "model.safetensors")
    assert {name: found[name].shape for name in expected} == {name: part.shape for name, part in expected.items()}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_every_accelerate_file_is_launched_by_a_test():
    """cpu by the fixture of the pretrained model, cpu-ddp in test_two_processes.py."""
    files = {path.stem for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")}
    assert files == {"cpu", "cpu-ddp", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload"}


@pytest.mark.skipif("zero3" not in WAYS, reason="needs the package deepspeed")
def test_a_contradiction_is_told_before_anything_is_loaded(corpus, tmp_path):
    done = run(
        "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/zero1.yaml", "--num_processes", "1",
        "--main_process_port", "0", "--zero_stage", "3", "recipes/pretrain.py",
        *pretrain_arguments(corpus, tmp_path, use_cpu="false"), check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "`zero_stage: 3` in the accelerate config contradicts ds_configs/zero1.json" in done.stderr

"""The shipped accelerate files, launched: two processes over gloo train as one, sharded in each of the ways.

The same files are for GPUs; hfgpt/training/processes.py is what makes them run on processors.
"""

import importlib.util
import json
import shutil

import pytest
from helpers import ROOT, pretrain_arguments, run
from safetensors.torch import load_file


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the package deepspeed"
)
# Those that other tests launch too are left to `make test-slow`.
WAYS = [
    pytest.param("ddp", marks=pytest.mark.slow),
    "fsdp2",
    pytest.param("zero1", marks=[needs_deepspeed, pytest.mark.slow]),
    pytest.param("zero2", marks=[needs_deepspeed, pytest.mark.slow]),
    pytest.param("zero3", marks=[needs_deepspeed, pytest.mark.slow]),
    pytest.param("zero3_offload", marks=[needs_deepspeed, pytest.mark.slow]),
]
TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=WAYS)
def folder(request, corpus, tmp_path_factory):
    """Output folder of a run launched in one of the ways."""
    folder = tmp_path_factory.mktemp(request.param)
    run(
        "-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{request.param}.yaml",
        "--num_processes", "2", "--main_process_port", "0", "recipes/pretrain.py",
        *pretrain_arguments(
            corpus, folder, use_cpu="false", per_device_train_batch_size=2, save_strategy="no", eval_on_start="false"
        ),
    )  # fmt: skip
    return folder


def history(folder, name):
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in entries if name in entry}


def test_two_processes_train_as_one(folder, pretrained):
    assert history(folder, "loss") == pytest.approx(history(pretrained, "loss"), abs=TOLERANCE)
    assert history(folder, "eval_loss")[12] == pytest.approx(history(pretrained, "eval_loss")[12], abs=TOLERANCE)


def test_the_saved_model_is_whole(folder, pretrained):
    from transformers import AutoModelForCausalLM

    import hfgpt  # noqa: F401

    model, problems = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(problems.values()), problems
    expected = load_file(pretrained / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert {name: found[name].shape for name in expected} == {name: part.shape for name, part in expected.items()}
    assert model.lm_head.weight is model.model.embed_tokens.weight


@needs_deepspeed
@pytest.mark.slow
def test_two_processes_that_share_each_matrix_train_as_one_and_resume(corpus, pretrained, tmp_path):
    config = json.loads((ROOT / "ds_configs" / "zero1.json").read_text())
    config["tensor_parallel"] = {"autotp_size": 2}
    config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    (tmp_path / "ds.json").write_text(json.dumps(config))
    where = (ROOT / "recipes" / "accelerate" / "zero1.yaml").read_text()
    (tmp_path / "tp.yaml").write_text(where.replace("ds_configs/zero1.json", str(tmp_path / "ds.json")))
    command = [
        "-m", "accelerate.commands.launch", "--config_file", tmp_path / "tp.yaml", "--num_processes", "2",
        "--main_process_port", "0", "recipes/pretrain.py", *pretrain_arguments(corpus, tmp_path / "run", use_cpu="false"),
    ]  # fmt: skip
    run(*command)
    losses = history(tmp_path / "run", "loss")
    assert losses == pytest.approx(history(pretrained, "loss"), abs=TOLERANCE)
    shutil.rmtree(tmp_path / "run" / "checkpoint-12")
    (tmp_path / "run" / "all_results.json").unlink()
    assert "Resuming from" in run(*command).stderr
    assert history(tmp_path / "run", "loss") == losses


def test_every_accelerate_file_is_launched_by_a_test():
    """cpu by the fixture of the pretrained model, cpu-ddp in test_two_processes.py."""
    files = {path.stem for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")}
    assert files == {"cpu", "cpu-ddp", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload"}


@needs_deepspeed
def test_a_contradiction_is_told_before_anything_is_loaded(corpus, tmp_path):
    done = run(
        "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/zero1.yaml", "--num_processes", "1",
        "--main_process_port", "0", "--zero_stage", "3", "recipes/pretrain.py",
        *pretrain_arguments(corpus, tmp_path, use_cpu="false"), check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "`zero_stage: 3` in the accelerate config contradicts ds_configs/zero1.json" in done.stderr

"""Every DeepSpeed and accelerate file loads with the installed versions; unknown and contradicting fields are errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers import ROOT

from hfgpt.training.launch import (
    DEEPSPEED_FIELDS,
    check_deepspeed_config,
    check_launch,
    output_dir_of,
    read_deepspeed_config,
    tensor_parallel_size,
)


DS_CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
ACCELERATE = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


def arguments(**fields):
    """What `check_launch` reads of TrainingArguments."""
    values = {
        "deepspeed": None,
        "fsdp": None,
        "use_cpu": False,
        "bf16": True,
        "fp16": False,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 1.0,
        "parallelism_config": None,
    }
    return SimpleNamespace(**values | fields)


@pytest.fixture
def deepspeed(monkeypatch, tmp_path):
    """Set the environment of a launch with DeepSpeed and a config of these fields; returns its path."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")

    def configure(**fields):
        config = read_deepspeed_config(str(ROOT / "ds_configs" / "zero3.json")) | fields
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
        return str(path)

    return configure


def refused(*words, **fields):
    with pytest.raises(ValueError) as error:
        check_launch(arguments(**fields))
    for word in words:
        assert str(word) in str(error.value)


def test_there_are_the_files_that_were_promised():
    assert {path.stem for path in DS_CONFIGS} == {"zero1", "zero2", "zero3", "zero3_offload"}
    assert {path.stem for path in ACCELERATE} >= {
        "cpu", "ddp", "cpu-ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2",
    }  # fmt: skip


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_deepspeed_files_are_known_field_by_field(path):
    config = read_deepspeed_config(str(path))
    check_deepspeed_config(config, path.name)
    zero = config["zero_optimization"]
    assert zero["stage"] == int(path.stem[4])
    assert ("offload_optimizer" in zero) == path.stem.endswith("offload")
    for name in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert config[name] == "auto"
    assert config["bf16"] == config["fp16"] == {"enabled": "auto"}
    if zero["stage"] == 3:
        assert zero["stage3_gather_16bit_weights_on_model_save"] is True


@pytest.mark.parametrize("where", ["accelerate", "recipe"])
def test_hfgpts_own_config_is_found_from_any_folder(where, deepspeed, monkeypatch, tmp_path):
    """accelerate files name ds_configs/zero3.json, which accelerate and DeepSpeed read later, by the path left to them."""
    monkeypatch.chdir(tmp_path)
    deepspeed()
    args = arguments(deepspeed="ds_configs/zero3.json" if where == "recipe" else None)
    if where == "recipe":
        monkeypatch.delenv("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    else:
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds_configs/zero3.json")
    check_launch(args)
    found = args.deepspeed if where == "recipe" else os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"]
    assert Path(found) == ROOT / "ds_configs" / "zero3.json"
    # The user's own comes first.
    own = tmp_path / "ds_configs" / "zero3.json"
    own.parent.mkdir()
    own.write_text('{"optimizer": {}}')
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds_configs/zero3.json")
    refused("`optimizer` in ds_configs/zero3.json")


def test_the_fields_we_take_are_those_deepspeed_reads():
    """DeepSpeed's config is asked for every name it knows."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    asked = set()

    class Asked(dict):
        def __contains__(self, name):
            asked.add(name)
            return super().__contains__(name)

        def get(self, name, default=None):
            asked.add(name)
            return super().get(name, default)

        def keys(self):
            return self

        def __copy__(self):
            return self

    DeepSpeedConfig(Asked(train_micro_batch_size_per_gpu=1))
    assert not set(DEEPSPEED_FIELDS) - asked


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gradient_cliping": 1.0}, ["gradient_cliping", "did you mean `gradient_clipping`"]),
        ({"zero_optimization": {"stage": 3, "overlap_com": True}}, ["overlap_com", "did you mean `overlap_comm`"]),
        ({"zero_optimization": {"offload_param": {"devise": "cpu"}}}, ["devise", "`device`", "offload_param"]),
        ({"zero_optimization": {"stage": 7}}, ["stage", "zero_optimization"]),
        ({"bf16": {"enable": True}}, ["enable", "`enabled`"]),
        ({"data_types": {"grad_accum_type": "fp32"}}, ["grad_accum_type", "grad_accum_dtype"]),
        ({"optimizer": {"type": "AdamW"}}, ["optimizer", "`optim`"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["scheduler", "schedule in tokens"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_deepspeed_field_that_would_be_ignored_is_an_error(fields, words):
    with pytest.raises(ValueError) as error:
        check_deepspeed_config(fields, "ds.json")
    for word in [*words, "ds.json"]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "own"),
    [
        ("train_micro_batch_size_per_gpu", 4, "per_device_train_batch_size"),
        ("gradient_accumulation_steps", 16, "gradient_accumulation_steps"),
        ("gradient_clipping", 0.5, "max_grad_norm"),
        ("bf16", {"enabled": False}, "bf16"),
        ("fp16", {"enabled": True}, "fp16"),
    ],
)
def test_a_deepspeed_field_at_odds_with_the_recipe_names_both(deepspeed, field, value, own):
    path = deepspeed(**{field: value})
    refused(field, f"`{own}`", path, '"auto"')


def test_deepspeed_fields_that_agree_with_the_recipe_pass(deepspeed):
    deepspeed(train_micro_batch_size_per_gpu=8, gradient_clipping=1.0, bf16={"enabled": True})
    check_launch(arguments())


def test_deepspeed_does_not_clip_at_its_own_default(deepspeed):
    path = deepspeed(gradient_clipping=None)
    refused("gradient_clipping", "max_grad_norm", path, max_grad_norm=0.3)
    check_launch(arguments())


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2", "zero_stage"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "offload_param_device"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "gradient_clipping"),
    ],
)
def test_an_accelerate_field_at_odds_with_the_deepspeed_file_names_both(deepspeed, monkeypatch, variable, value, name):
    path = deepspeed()
    monkeypatch.setenv(variable, value)
    refused(f"`{name}: {value}`", path)


def test_an_unknown_field_of_the_accelerate_config_s_deepspeed_part(deepspeed, monkeypatch):
    deepspeed()
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "deepspeed_config_file,zero_3_init_flag")
    refused("zero_3_init_flag", "did you mean `zero3_init_flag`")


def test_deepspeed_needs_a_file(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    refused("deepspeed_config_file", "ds_configs/")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "nowhere.json")
    refused("nowhere.json")


def test_precision_of_the_launch_and_of_the_recipe(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    refused("mixed_precision: fp16", "`bf16` is true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_launch(arguments())
    refused("mixed_precision: bf16", "`bf16` is false", bf16=False)


def test_fsdp(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    refused("fsdp_version")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    refused("fsdp_state_dict_type: SHARDED_STATE_DICT", "FULL_STATE_DICT")
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    check_launch(arguments())
    refused("use_cpu", use_cpu=True)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    refused("DeepSpeed and for FSDP")


@pytest.mark.parametrize(("name", "word"), [("sp", "Ulysses"), ("cp", "ring attention"), ("tp", "autotp_size")])
def test_parallelism_that_would_be_wrong_is_refused(monkeypatch, name, word):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    check_launch(arguments())
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "2")
    refused(f"`{name}_size` 2", word)
    monkeypatch.undo()
    refused(f"`{name}_size` 2", parallelism_config=SimpleNamespace(**{f"{name}_size": 2}))


def test_deepspeed_s_tensor_parallelism_passes(deepspeed):
    deepspeed()
    assert tensor_parallel_size(arguments()) == 1
    path = deepspeed(tensor_parallel={"autotp_size": 2})
    check_launch(arguments())
    assert tensor_parallel_size(arguments()) == 2
    deepspeed(tensor_parallel={"autotp_size": 2}, zero_optimization={"stage": 1})
    refused("autotp_size", "stage3_gather_16bit_weights_on_model_save", path)


def launcher_fields():
    """Names that accelerate's launcher reads of its sections, by their prefix."""
    from accelerate.commands.launch import launch_command_parser

    return {action.dest for action in launch_command_parser()._actions}


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_files_are_known_field_by_field(path):
    """Their first level accelerate checks itself; what is unknown below it is ignored."""
    from accelerate.commands.config.config_args import load_config_from_file

    load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert values.get("mixed_precision", "no") == "no"
    known = launcher_fields()
    for section in ("deepspeed_config", "fsdp_config"):
        assert not set(values.get(section, {})) - known
    if values["distributed_type"] == "DEEPSPEED":
        assert (ROOT / values["deepspeed_config"]["deepspeed_config_file"]).is_file()
        # Else several machines would need a hostfile and pdsh; and accelerate refuses `mixed_precision` beside a file.
        assert values["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"
        assert "mixed_precision" not in values


def test_accelerate_refuses_an_unknown_field(tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "where.yaml"
    path.write_text("distributed_type: MULTI_GPU\nmixed_precision: 'no'\nnum_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(path))


def test_where_a_run_writes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: out/here\n")
    assert output_dir_of(["--config", str(recipe), "--max_steps", "3"]) == "out/here"
    assert output_dir_of(["--config", str(recipe), "--output_dir", "there"]) == "there"
    assert output_dir_of([]) == "out/run"


WORKER = """
import os, signal, sys, time
folder = sys.argv[sys.argv.index("--output_dir") + 1]
def stop(number, frame):
    open(folder + "/interrupted.json", "w").write("{}")
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
open(folder + "/started" + os.environ["RANK"], "w").write(str(os.getpid()))
if "--fail" in sys.argv:
    sys.exit(9)
while "--finish" not in sys.argv:
    time.sleep(0.1)
"""


@pytest.fixture
def slurm(tmp_path):
    """Run the Slurm script with made-up Slurm commands and a worker that keeps the contract; returns the process."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "srun": 'while [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec setsid --wait "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol.log; [ "$1" = show ] && echo 127.0.0.1; true',
        "python": f'exec {sys.executable} "$@"',
        "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "pretrain.py").write_text(WORKER)
    out = tmp_path / "run"
    out.mkdir()

    def submit(*fields):
        return subprocess.Popen(
            ["bash", str(ROOT / "recipes/slurm/pretrain.sbatch"), str(ROOT / "recipes/accelerate/cpu-ddp.yaml"),
             "--output_dir", str(out), *fields],
            cwd=tmp_path,
            env={
                **os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1",
                "PROCESSES_PER_NODE": "2", "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    return SimpleNamespace(submit=submit, commands=commands, out=out, log=tmp_path / "scontrol.log")


def requeued(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("requeue")]


def test_slurm_job_that_is_signalled_saves_and_requeues_itself_once(slurm):
    (slurm.out / "interrupted.json").write_text("{}")  # of an earlier stop
    job = slurm.submit()
    deadline = time.monotonic() + 120
    while not all((slurm.out / f"started{rank}").exists() for rank in range(2)):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    assert not (slurm.out / "interrupted.json").exists()
    # As Slurm does, to every process of the step: launcher and workers.
    pid = int((slurm.out / "started0").read_text())
    for process in session_of(pid):
        os.kill(process, signal.SIGUSR1)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert (slurm.out / "interrupted.json").exists()
    assert len(requeued(slurm.log)) == 1


def session_of(pid: int) -> list[int]:
    """The processes that the made-up srun started, with the worker `pid` among them."""
    import psutil

    launcher = psutil.Process(pid).parent()
    return [launcher.pid, *(child.pid for child in launcher.children(recursive=True))]


@pytest.mark.parametrize(("field", "status"), [("--finish", 0), ("--fail", 9)])
def test_slurm_job_that_ends_by_itself_is_not_repeated(slurm, field, status):
    without_launcher = 'while [[ $1 != recipes/* ]]; do shift; done\nRANK=0 exec python "$@"'
    (slurm.commands / "accelerate").write_text(f"#!/bin/bash\n{without_launcher}\n")
    job = slurm.submit(field)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == status, errors
    assert (slurm.out / "started0").exists()
    assert not requeued(slurm.log)


def test_slurm_script_is_valid_shell():
    subprocess.run(["bash", "-n", str(ROOT / "recipes/slurm/pretrain.sbatch")], check=True)


@pytest.mark.parametrize(
    ("block", "name"), [("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")]
)
def test_what_finds_steps_that_are_not_finite_stays_on(block, name):
    config = {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}
    check_deepspeed_config(config, "ds.json")
    config[block][name] = False
    with pytest.raises(ValueError, match=rf"`{block}.{name}: false` in ds.json"):
        check_deepspeed_config(config, "ds.json")

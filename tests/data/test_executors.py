"""One result wherever the tasks run, however often they are killed, and one clear message when they fail."""

import errno
import json
import multiprocessing
import os
import random
import signal
import sys
import textwrap
import time
import zlib
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from real_text import docstrings

from hfgpt.config import from_mapping
from hfgpt.data import executors
from hfgpt.data.corpus import CorpusConfig, prepare
from hfgpt.data.documents import (
    Ledger,
    PartWriter,
    ReadPart,
    Step,
    WritePart,
    list_parts,
    make_document,
    read_documents,
    read_json,
)
from hfgpt.data.executors import ExecutorConfig, parse_options, run_tasks


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources in several parts, with duplicates across them, a benchmark, and a tokenizer to train."""
    folder = tmp_path_factory.mktemp("recipe")
    texts = docstrings()[:160]
    for name, part in (("wiki", texts[:60]), ("web", texts[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    (folder / "test.jsonl").write_text(json.dumps({"text": texts[70]}) + "\n")
    values = {
        "sources": [
            {"name": "web", "path": str(folder / "web.jsonl"), "weight": 0.7},
            {"name": "wiki", "path": str(folder / "wiki.jsonl"), "weight": 0.3},
        ],
        "decontaminate": {"benchmarks": [{"name": "test", "path": str(folder / "test.jsonl")}]},
        "tokenizer": {"vocab_size": 1000},
        "holdout_fraction": 0.05,
        "part_bytes": 40_000,
        "shard_tokens": 8_000,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def expected(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Checksums of the corpus as one process makes it."""
    return prepared(recipe, tmp_path_factory.mktemp("expected") / "corpus", ExecutorConfig(workers=1))


def prepared(recipe: Path, folder: Path, executor: ExecutorConfig) -> dict[str, int]:
    prepare(from_mapping(CorpusConfig, yaml.safe_load(recipe.read_text()), "recipe"), folder, executor=executor)
    return checksums(folder)


def checksums(folder: Path) -> dict[str, int]:
    files = [
        path for part in ("train", "validation", "tokenizer", "contamination") for path in (folder / part).rglob("*.*")
    ]
    assert len(files) > 8
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(recipe, expected, tmp_path):
    assert prepared(recipe, tmp_path / "corpus", ExecutorConfig(workers=2)) == expected


def test_a_ray_cluster_gives_the_same_bytes(recipe, expected, tmp_path):
    pytest.importorskip("ray")
    assert prepared(recipe, tmp_path / "corpus", ExecutorConfig("ray", workers=2)) == expected


def make(recipe: Path, folder: Path, workers: int) -> None:
    prepared(recipe, folder, ExecutorConfig(workers=workers))


def count_completed(stages: Path) -> int:
    return sum(len(list(stages.glob(f"{depth}/tasks/completions/*"))) for depth in ("*", "*/*"))


def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(recipe, expected, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hfgpt.data.corpus"])
    generator = random.Random(0)
    stages = tmp_path / "corpus.stages"
    for workers in (1, 1, 2, 1, 1):
        process = context.Process(target=make, args=(recipe, tmp_path / "corpus", workers))
        process.start()
        done = count_completed(stages)
        goal = done + generator.randrange(1, 6)
        while done < goal and process.is_alive():
            time.sleep(0.002)
            done = count_completed(stages)
        time.sleep(generator.random() * 0.05)
        assert process.is_alive(), "it was over before it was killed"
        process.kill()
        process.join()
    assert not (tmp_path / "corpus").exists()
    assert prepared(recipe, tmp_path / "corpus", ExecutorConfig(workers=1)) == expected


class Fail(Step):
    """Fails in its second task, if it is told to."""

    def __init__(self, how: str, ledger: Ledger):
        super().__init__(ledger)
        self.how = how

    def run(self, data=None, rank=0, world_size=1):
        if rank != 1 or self.how == "no":
            return
        if self.how == "input":
            raise ValueError("the field `text` is not there")
        if self.how == "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "/data/corpus/part")
        if self.how == "defect":
            raise UnpicklableError("one", "two")
        os.kill(os.getpid(), signal.SIGKILL)


class UnpicklableError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("input", ValueError, r"^the field `text` is not there$"),
        ("disk", ValueError, r"The disk is full at /data/corpus/part. What is finished is kept"),
        ("defect", RuntimeError, r"Stage 'read' failed: UnpicklableError: one and two \(details in .*-00001.json\)"),
        ("killed", RuntimeError, r"A worker process was killed from outside.*fewer `--workers`"),
    ],
)
def test_failure_of_a_task_is_one_message_and_the_others_are_kept(tmp_path, how, error, message):
    with pytest.raises(error, match=message):
        run_tasks("read", [Fail(how, Ledger())], 3, tmp_path, ExecutorConfig(workers=2))
    if how != "killed":
        assert {path.name for path in (tmp_path / "completions").iterdir()} >= {"00000"}
    assert not (tmp_path / "completions/00001").exists()
    run_tasks("read", [Fail("no", Ledger())], 3, tmp_path, ExecutorConfig())


@pytest.mark.parametrize("how", ["input", "disk", "defect"])
def test_failure_in_this_process_is_the_same(tmp_path, how):
    with pytest.raises((ValueError, RuntimeError)):
        run_tasks("read", [Fail(how, Ledger())], 3, tmp_path, ExecutorConfig(workers=1))
    assert [path.name for path in (tmp_path / "completions").iterdir()] == ["00000"]


def test_finished_tasks_are_not_run_again(tmp_path):
    run_tasks("read", [Fail("no", Ledger())], 2, tmp_path, ExecutorConfig(workers=1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "completions").iterdir()}
    run_tasks("read", [Fail("input", Ledger())], 2, tmp_path, ExecutorConfig(workers=1))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "completions").iterdir()} == before


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch, squeue and scontrol that run the job on this machine, one array task after the other."""
    commands = {
        "sbatch": f"""
            import os, re, shutil, subprocess, sys
            script = "{tmp_path}/job.sh"
            shutil.copy(sys.argv[-1], script)
            last = int(re.search(r"--array=0-(\\d+)", open(script).read())[1])
            loop = f"for i in $(seq 0 {{last}}); do SLURM_ARRAY_TASK_ID=$i SLURM_JOB_ID=7 SLURM_NODELIST=here bash {{script}}; done"
            log = open("{tmp_path}/log", "a")
            job = subprocess.Popen(["bash", "-c", loop], stdout=log, stderr=log, start_new_session=True)
            open("{tmp_path}/pid", "w").write(str(job.pid))
            print("Submitted batch job 7")
            """,
        "squeue": f"""
            state = open("/proc/" + open("{tmp_path}/pid").read() + "/stat").read().split()[2]
            print("" if state == "Z" else "7 running")
            """,
        "scontrol": "print('here')",
        "scancel": "",
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in commands.items():
        (folder / name).write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = {"partition": "cpu", "time": "1:00:00", "with_srun": False, "tasks_per_job": 2}
    return ExecutorConfig("slurm", workers=2, options=options)


def copying(folder: Path) -> list[Step]:
    """Steps that a job can import, for three parts."""
    ledger = Ledger()
    for number in range(3):
        with PartWriter(folder / f"in/{number}.parquet") as writer:
            writer.write(make_document(f"text {number}", str(number), "web"))
    return [ReadPart(folder / "in", ledger), WritePart(folder / "in", folder / "out", ledger)]


def test_slurm_runs_the_tasks_and_brings_back_ledgers_and_errors(slurm, tmp_path):
    steps = copying(tmp_path)
    run_tasks("read", steps, 3, tmp_path / "tasks", slurm)
    found = [document.text for part in list_parts(tmp_path / "out") for document in read_documents(part)]
    assert found == ["text 0", "text 1", "text 2"]
    ledgers = [read_json(tmp_path / f"tasks/ledgers/0000{rank}.json") for rank in range(3)]
    assert [one["counts"]["web"]["documents_out"] for one in ledgers] == [1, 1, 1]
    (tmp_path / "in/1.parquet").write_bytes(b"no parquet")
    with pytest.raises(RuntimeError, match=r"Stage 'again' failed: ArrowInvalid: .*details in .*-00001\.json"):
        run_tasks("again", steps, 3, tmp_path / "again", slurm)


@pytest.mark.slow
def test_slurm_job_of_a_stopped_driver_is_waited_for(slurm, tmp_path, monkeypatch):
    """Its tasks are not submitted a second time."""
    steps = copying(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(executors, "_wait_for_slurm", stop)
        run_tasks("read", steps, 3, tmp_path / "tasks", slurm)
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\nexit 1\n")
    run_tasks("read", steps, 3, tmp_path / "tasks", slurm)
    assert len(list_parts(tmp_path / "out")) == 3


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_slurm_without_its_commands_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = ExecutorConfig("slurm", options={"partition": "cpu", "time": "1:00:00"})
    with pytest.raises(ValueError, match="needs the command sbatch"):
        run_tasks("read", [Fail("no", Ledger())], 1, tmp_path / "tasks", config)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("slurm", None, {"partition": "cpu"}), r"needs `time`"),
        (("local", 0), r"`--workers` must be at least 1, got 0"),
        (("slurm", 1, {"partiton": "x", "time": "1"}), r"did you mean `partition`"),
        (("local", 1, {"tasks": 3}), r"Unknown key `tasks`"),
    ],
)
def test_executor_that_cannot_work_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        ExecutorConfig(*arguments)


def test_options_are_read_as_yaml_and_times_stay_text():
    options = parse_options(["partition=cpu", "time=12:30:00", "mem_per_cpu_gb=4", "requeue=false"])
    assert options == {"partition": "cpu", "time": "12:30:00", "mem_per_cpu_gb": 4, "requeue": False}
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse_options(["partition"])

"""Where the tasks of a stage run: local processes, a Ray cluster or Slurm, by datatrove's executors.

What is added to them: an error in a task ends the run with one message (under Ray and Slurm too, where datatrove only
logs it), every finished task leaves its ledger, a bar counts tasks and documents, and a task whose driver was killed
stops instead of working on beside the next run.
"""

import errno
import inspect
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger
from tqdm.auto import tqdm

from ..config import unknown_key
from .documents import Step, read_json, write_json


ExecutorName = Literal["local", "ray", "slurm"]
# Seconds between two looks at running tasks.
POLL_SECONDS = 0.5
# Set by `run_tasks`, not by options.
OURS = {"self", "pipeline", "tasks", "workers", "logging_dir", "depends", "skip_completed", "job_name"}
# Of datatrove's way to run tasks on Ray, which is not ours.
NOT_FOR_RAY = {"nodes_per_task", "tasks_per_job", "time", "log_first", "randomize_start_duration"}


@dataclass
class ExecutorConfig:
    """Where tasks run: which executor, how many tasks at once, and datatrove's options for it."""

    name: ExecutorName = "local"
    workers: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"`--workers` must be at least 1, got {self.workers}.")
        parameters = inspect.signature(EXECUTORS[self.name].__init__).parameters
        known = set(parameters) - OURS
        if self.name == "ray":
            known = known - NOT_FOR_RAY | {"address"}
        for option in self.options:
            if option not in known:
                raise unknown_key(option, known, f"`--executor-option` of the {self.name} executor")
        if self.name == "slurm":
            missing = [option for option in ("partition", "time") if option not in self.options]
            if missing:
                raise ValueError(
                    f"The slurm executor needs {' and '.join(f'`{option}`' for option in missing)}: "
                    "--executor-option partition=NAME --executor-option time=HH:MM:SS."
                )

    def workers_for(self, tasks: int, small: bool = False) -> int:
        """How many of `tasks` run at once; without a wish, one for little work (starting processes costs seconds)."""
        if self.workers is not None:
            return min(self.workers, tasks)
        if self.name != "local":
            return tasks
        return 1 if small else min(cpu_count(), tasks)


def parse_options(options: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as a mapping, the values read as YAML reads them.

    Raises:
        ValueError: A word without "=".
    """
    values = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"`--executor-option` must be KEY=VALUE, got {option!r}.")
        # Slurm's times would be numbers to base 60.
        values[key] = value if ":" in value else yaml.safe_load(value)
    return values


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TaskError(Exception):
    """A task failed; its argument says how, as JSON, and so does its error file, if there was room for one."""


class _Task:
    """How each executor runs one task."""

    driver_pid: int | None = None
    threads: int | None = None
    # Of the run that the task belongs to: a task that has outlived its driver must not fail the next one.
    run_id = ""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        executor: Any = self
        if executor.is_rank_completed(rank):
            return PipelineStats()
        folder = Path(executor.logging_dir.path)
        error_file = folder / "errors" / f"{self.run_id}-{rank:05d}.json"
        if self.driver_pid is not None and self.driver_pid != os.getpid():
            # This process shares the cores with the other workers.
            os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(self.threads or 1)
        executor._set_distributed_environment(node_rank)
        logger.disable("datatrove")
        # Slurm runs several tasks with one executor: each starts from the same steps.
        pipeline: list[Step] = deepcopy(executor.pipeline)
        ledger = pipeline[0].ledger
        ledger.progress_file = folder / "progress" / f"{rank:05d}"
        wall, cpu = time.monotonic(), time.process_time()
        try:
            data: Any = None
            for step in pipeline:
                data = step(data, rank, executor.world_size)
            if data is not None:
                deque(data, maxlen=0)
            ledger.write_progress()
            seconds = {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}
            write_json(folder / "ledgers" / f"{rank:05d}.json", {**ledger.to_dict(), **seconds})
            stats = PipelineStats(pipeline)
            with executor.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
                stats.save_to_disk(file)
            executor.mark_rank_as_completed(rank)
            return stats
        except Exception as error:
            description = _describe(error)
            with suppress(OSError):
                write_json(error_file, description)
            # Plain text: some exceptions do not survive being pickled, and their pool would wait for ever.
            raise TaskError(json.dumps(description)) from None


class LocalExecutor(_Task, LocalPipelineExecutor):
    """Processes of this machine; one worker is this process itself."""

    def run(self) -> None:
        """Run what is left, in a pool that notices when a worker was killed (datatrove's waits for it for ever)."""
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                self._run_for_rank(rank)
            return
        context = multiprocessing.get_context(self.start_method)
        if self.start_method == "forkserver":
            # Imported once, by the server that the workers are forked from.
            context.set_forkserver_preload(["hfgpt.data.corpus"])
        workers = min(self.workers, len(ranks))
        with ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),)) as pool:
            futures = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BrokenProcessPool:
                raise RuntimeError(
                    "A worker process was killed from outside, most often for want of memory. What is finished is kept: "
                    "run the same command again with fewer `--workers`."
                ) from None
            except KeyboardInterrupt:
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
            finally:
                pool.shutdown(cancel_futures=True)


class RayExecutor(_Task, RayPipelineExecutor):
    """A Ray cluster, or one that is started on this machine."""

    def run(self) -> None:
        """Run what is left as Ray's tasks, in processes that are used again (datatrove starts some for every task)."""
        import ray

        remote = ray.remote(_run_ray_task).options(
            num_cpus=self.cpus_per_task,
            num_gpus=self.gpus_per_task,
            memory=int(self.mem_per_cpu_gb * self.cpus_per_task * 2**30),
            **{"max_retries": 3, **(self.ray_remote_kwargs or {})},
        )
        executor = ray.put(self)
        ranks = iter(self.get_incomplete_ranks())
        running = [remote.remote(executor, rank) for rank in islice(ranks, self.workers)]
        try:
            while running:
                done, running = ray.wait(running)
                ray.get(done)
                running.extend(remote.remote(executor, rank) for rank in islice(ranks, len(done)))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TaskError):
                raise error.cause from None
            raise RuntimeError(f"A task could not be started on the Ray cluster: {error.cause!r}.") from None
        except ray.exceptions.RayError as error:
            raise RuntimeError(
                f"Ray lost a task, even when it was tried again: {error}. What is finished is kept: run the same command "
                "again, perhaps with fewer `--workers` or `--executor-option mem_per_cpu_gb=N`."
            ) from None
        finally:
            for task in running:
                ray.cancel(task)


def _run_ray_task(executor: "RayExecutor", rank: int) -> None:
    executor._run_for_rank(rank)


class SlurmExecutor(_Task, SlurmPipelineExecutor):
    """Job arrays of a Slurm cluster."""

    def run(self) -> None:
        """In a job: its tasks. Else submit what is left and wait for it, or for the job of a driver that was stopped."""
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            super().run()
            return
        folder = Path(self.logging_dir.path)
        submitted = folder / "job_id"
        if submitted.exists():
            _wait_for_slurm(self, folder, submitted.read_text())
        if self.get_incomplete_ranks():
            super().run()
            submitted.write_text(str(self.job_id))
            _wait_for_slurm(self, folder, str(self.job_id))

    def launch_merge_stats(self) -> None:
        """Nothing: the ledgers are merged by the driver."""


EXECUTORS: dict[str, Any] = {"local": LocalExecutor, "ray": RayExecutor, "slurm": SlurmExecutor}


def _describe(error: BaseException) -> dict[str, str]:
    message = str(error)
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        kind = "ValueError"
        message = f"The disk is full{where}. What is finished is kept: free some space and run the same command again."
    elif isinstance(error, PermissionError):
        kind = "ValueError"
    elif isinstance(error, ModuleNotFoundError):
        kind = "ValueError"
        message = f"{error}: web pages, WARC files and Wikipedia dumps need pip install 'hfgpt[web]'."
    return {"kind": kind, "message": message, "traceback": traceback.format_exc()}


def _start_worker(driver: int) -> None:
    """Make this process, before its first task, end with the one that runs the stage."""
    # Ctrl-C reaches every process of a terminal; the driver ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while _is_alive(driver):
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_alive(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be buried."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # no /proc on this system, or another user's
        return True


def run_tasks(
    name: str, pipeline: list[Step], tasks: int, folder: Path, config: ExecutorConfig, small: bool = False
) -> None:
    """Run the tasks of a stage that are not done yet.

    Args:
        name: Name of the stage, for the bar and for Slurm.
        pipeline: Its steps, which share one ledger.
        tasks: Their number; task `rank` of them is `step.run(data, rank, tasks)`.
        folder: Where the tasks leave completions, ledgers and errors.
        config: Where they run.
        small: Whether there is too little to do for processes to pay off.

    Raises:
        ValueError: A task found bad input or a full disk.
        RuntimeError: A task failed otherwise; the message names the file with the details.
    """
    for sub in ("progress", "errors"):
        shutil.rmtree(folder / sub, ignore_errors=True)
        (folder / sub).mkdir(parents=True, exist_ok=True)
    workers = config.workers_for(tasks, small)
    options = {key: value for key, value in config.options.items() if key != "address"}
    if config.name == "slurm":
        options = {"job_name": f"hfgpt-{name.replace('/', '-')}", "env_command": _activate(), **options}
    logger.disable("datatrove")
    executor = EXECUTORS[config.name](
        pipeline=pipeline, tasks=tasks, workers=workers, logging_dir=str(folder), **options
    )
    executor.run_id = uuid.uuid4().hex[:8]
    if config.name == "local":
        executor.driver_pid = os.getpid()
        executor.threads = max(1, cpu_count() // workers)
    failure = None
    try:
        if executor.get_incomplete_ranks():
            with _bar(name, folder, tasks):
                executor.run()
    except TaskError as error:
        failure = json.loads(str(error))
    except FileNotFoundError as error:
        if config.name != "slurm" or error.filename != "sbatch":
            raise
        raise ValueError(
            "`--executor slurm` needs the command sbatch: run it on a login node of the cluster."
        ) from None
    finally:
        logger.enable("datatrove")
    for file in _error_files(folder, executor)[:1]:
        failure = {**read_json(file), "details": f" (details in {file})"}
    if failure is not None and failure["kind"] == "ValueError":
        raise ValueError(failure["message"])
    if failure is not None:
        raise RuntimeError(
            f"Stage {name!r} failed: {failure['kind']}: {failure['message']}{failure.get('details', '')}. "
            "What is finished is kept: run the same command again."
        )
    left = executor.get_incomplete_ranks()
    if left:
        raise RuntimeError(
            f"Stage {name!r} ended with {len(left)} of {tasks} tasks unfinished (task {left[0]} first); logs are in {folder}. "
            "Run the same command again: what is finished is kept."
        )


def _error_files(folder: Path, executor: Any) -> list[Path]:
    return sorted((folder / "errors").glob(f"{executor.run_id}-*.json"))


@contextmanager
def ray_cluster(config: ExecutorConfig) -> Iterator[None]:
    """A connection to Ray for the length of a run, where the executor is Ray: a cluster, else this machine."""
    if config.name != "ray":
        yield
        return
    try:
        import ray
    except ImportError:
        raise ValueError("`--executor ray` needs Ray: pip install 'hfgpt[ray]'.") from None
    if ray.is_initialized():
        yield
        return
    address = config.options.get("address") or os.environ.get("RAY_ADDRESS")
    where = (
        {"address": address} if address else {"num_cpus": config.workers or cpu_count(), "include_dashboard": False}
    )
    ray.init(**where, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _activate() -> str | None:
    """The command that makes a job use this Python's environment."""
    script = Path(sys.prefix) / "bin" / "activate"
    return f"source {script}" if script.exists() else None


def _wait_for_slurm(executor: Any, folder: Path, job_id: str) -> None:
    """Until every task of a submitted job has ended, well or badly."""
    gone = 0
    while executor.get_incomplete_ranks() and not _error_files(folder, executor):
        time.sleep(POLL_SECONDS if gone else 10 * POLL_SECONDS)
        listed = subprocess.run(
            ["squeue", "--noheader", "--jobs", job_id], capture_output=True, text=True, check=False
        )
        # A job leaves the queue a moment before its files show up on a shared file system.
        gone = gone + 1 if not listed.stdout.strip() else 0
        if gone > 10:
            return
    if _error_files(folder, executor):
        subprocess.run(["scancel", job_id], capture_output=True, check=False)


@contextmanager
def _bar(name: str, folder: Path, tasks: int) -> Iterator[None]:
    """A bar on a terminal, nothing in a log: tasks done, documents read."""
    bar = tqdm(total=tasks, desc=name, unit="task", disable=None, leave=False)
    if bar.disable:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            finished = {path.name for path in (folder / "completions").glob("*")}
            documents = 0
            for path in (folder / "progress").glob("*"):
                with suppress(OSError, ValueError):
                    documents += int(path.read_text())
            bar.n = len(finished)
            bar.set_postfix_str(f"{documents:,} documents")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        bar.close()

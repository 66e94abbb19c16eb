"""Stages of independent tasks: what each depends on, whether it is done, and how it goes on after a stop."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .documents import Ledger, Step, list_parts, read_json, write_json
from .executors import ExecutorConfig, run_tasks


# The stages of `corpus` are in the folder `corpus.stages` beside it.
STAGES_ENDING = ".stages"
# What each stage's folder holds beside its own files.
TASKS_FOLDER, LEDGER_FILE, FINGERPRINT_FILE, SECONDS_FILE = "tasks", "ledger.json", "settings.json", "seconds.json"
LOCK_FILE = ".lock"
# Less text than this is not worth starting processes for.
SMALL_BYTES = 32_000_000


@dataclass
class Stage:
    """One stage: its steps, how many tasks run them, and the settings its result depends on beside earlier stages."""

    name: str
    steps: list[Step]
    settings: Any = None
    # Where its documents come from (one task a part), and where they go.
    read_from: Path | None = None
    documents: Path | None = None
    tasks: int | Callable[[], int] = 1
    # Of a stage that reads no documents; what is not known counts as little.
    input_bytes: int = 0
    # Too little work to send anywhere.
    inline: bool = False

    @property
    def group(self) -> str:
        """The stage as the report and `--stage` name it: the first half of its name."""
        return self.name.split("/")[0]

    def count_tasks(self) -> int:
        """How many tasks there are, once the stages before this one are done."""
        if self.read_from is not None:
            return len(list_parts(self.read_from))
        return self.tasks() if callable(self.tasks) else self.tasks


def stage_names(stages: list[Stage]) -> list[str]:
    """What `--stage` takes, in order."""
    return list(dict.fromkeys(stage.group for stage in stages))


def has_begun(folder: Path) -> bool:
    """Whether any task of any stage is done."""
    return any(path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{TASKS_FOLDER}/completions/*"))


def chain_fingerprints(stages: list[Stage]) -> list[str]:
    """A hash for each stage of its settings and of all that came before it."""
    fingerprints = [""]
    for stage in stages:
        fingerprints.append(fingerprint_of([fingerprints[-1], stage.name, stage.settings]))
    return fingerprints[1:]


def run_stage(
    stage: Stage,
    before: list[Stage],
    folder: Path,
    fingerprint: str,
    executor: ExecutorConfig,
) -> None:
    """Run what is left of one stage, merge its tasks' ledgers, and say what came of it.

    Args:
        stage: The stage.
        before: The stages before it.
        folder: Where all stages have their folders.
        fingerprint: Of the stage, from `chain_fingerprints`.
        executor: Where its tasks run.

    Raises:
        ValueError: A task found bad input or a full disk.
    """
    own = folder / stage.name
    if is_done(folder, stage):
        return
    _delete_unfinished(own)
    write_json(own / FINGERPRINT_FILE, {"sha256": fingerprint, "settings": stage.settings})
    tasks = stage.count_tasks()
    started = time.monotonic()
    try:
        if tasks:
            where = ExecutorConfig(workers=1) if stage.inline else executor
            run_tasks(stage.name, stage.steps, tasks, own / TASKS_FOLDER, where, _is_small(stage, before, folder))
    finally:
        # A stage that was stopped and went on took the sum.
        seconds = read_json(own / SECONDS_FILE) if (own / SECONDS_FILE).exists() else 0.0
        seconds += time.monotonic() - started
        with suppress(OSError):
            write_json(own / SECONDS_FILE, seconds)
    ledgers = [read_json(own / TASKS_FOLDER / "ledgers" / f"{rank:05d}.json") for rank in range(tasks)]
    total = {
        **Ledger.merged(ledgers).to_dict(),
        "tasks": tasks,
        "seconds": seconds,
        "cpu_seconds": sum(ledger["cpu_seconds"] for ledger in ledgers),
    }
    write_json(own / LEDGER_FILE, total)
    print(_line(stage.name, total), file=sys.stderr)


def _delete_unfinished(folder: Path) -> None:
    """Delete what killed tasks were writing: their names begin with a dot."""
    with suppress(FileNotFoundError):  # where one of them has not noticed yet
        for path in sorted(folder.rglob(".*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_done(folder: Path, stage: Stage) -> bool:
    """Whether every task of the stage is done."""
    return (folder / stage.name / LEDGER_FILE).exists()


def _is_small(stage: Stage, before: list[Stage], folder: Path) -> bool:
    """Whether the stage's input is too little for processes of its own to pay off."""
    documents = [one.documents for one in before if one.documents is not None]
    return has_little_text(documents[-1]) if documents else stage.input_bytes < SMALL_BYTES


def has_little_text(documents: Path) -> bool:
    """Whether the documents of a finished stage are too little text for many tasks to pay off."""
    counts = read_json(documents.parent / LEDGER_FILE)["counts"]
    return sum(numbers.get("bytes_out", 0) for numbers in counts.values()) < SMALL_BYTES


def _line(name: str, ledger: dict[str, Any]) -> str:
    counts = list(ledger["counts"].values())
    documents_in, documents_out = (sum(one.get(key, 0) for one in counts) for key in ("documents_in", "documents_out"))
    line = f"{name:<24} {ledger['seconds']:8.1f} s"
    if documents_in:
        line += f" {documents_in:>13,} documents"
    if documents_out:
        line += f" -> {documents_out:,}"
    return line


def fingerprint_of(value: Any) -> str:
    """A hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def another_recipe(folder: Path) -> str:
    """The message for a folder that another recipe made."""
    return (
        f"{folder} holds a corpus of another recipe or of files that have changed since: pass --overwrite (what has not "
        "changed is not made again) or choose another folder with --output."
    )


def drop_outdated(folder: Path, stages: list[Stage], fingerprints: list[str], overwrite: bool) -> None:
    """Delete the stages that were made from other settings or another input.

    Raises:
        ValueError: One of them is finished, and it was not to be overwritten.
    """
    current = dict(zip((stage.name for stage in stages), fingerprints))
    outdated = [
        path.parent
        for path in sorted([*folder.glob(f"*/{FINGERPRINT_FILE}"), *folder.glob(f"*/*/{FINGERPRINT_FILE}")])
        if read_json(path)["sha256"] != current.get(path.parent.relative_to(folder).as_posix())
    ]
    if not overwrite and any((stage / LEDGER_FILE).exists() for stage in outdated):
        raise ValueError(another_recipe(folder))
    for stage in outdated:
        shutil.rmtree(stage)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps two runs from writing to one folder of stages."""
    if folder.exists() and not (folder / LOCK_FILE).exists() and (folder.is_file() or any(folder.iterdir())):
        # It is deleted when it has served.
        raise ValueError(f"{folder} holds something else: choose another folder with --output.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"Another `hfgpt prepare` is writing to {folder}: wait for it, or choose another --output."
        ) from None
    try:
        yield
    finally:
        lock.release()

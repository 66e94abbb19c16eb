"""Pretraining runs that a test can kill, signal and hurt, and what came out of them.

A run is recipes/pretrain.py in processes of its own. They are forked from one that has imported everything, so that a
run takes a second, not ten. A fault is a function that is called in each process before the recipe, and makes something
go wrong later: a picklable one, such as `functools.partial(nonfinite, steps=[5])`.

This file is a script, too: the recipe's, with the faults that `with_faults` has put into the environment, for launchers.
"""

import base64
import contextlib
import ctypes
import errno
import functools
import importlib
import json
import multiprocessing
import os
import pickle
import resource
import runpy
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from helpers import ROOT, TINY_MODEL, pretrain_arguments
from safetensors.torch import load_file

from hfgpt.training.checkpoints import MANIFEST_FILE, files_below, hash_files, write_manifest


PROCESSES = multiprocessing.get_context("forkserver")
# accelerate imports DeepSpeed where it is installed, used or not.
PROCESSES.set_forkserver_preload(["pytest", "hfgpt", "hfgpt.training.pretrain", "matplotlib.figure", "deepspeed"])

# A batch that grows from 2 sequences to 6, in steps that a checkpoint falls between.
RAMP = {
    "per_device_train_batch_size": 1,
    "batch_increment_tokens": 2 * 32,
    "batch_size_tokens": 6 * 32,
    "batch_ramp_start_tokens": 2 * 32,
    "batch_ramp_tokens": 24 * 32,
    "train_tokens": 48 * 32,
    "eval_strategy": "no",
    "eval_on_start": "false",
}
# Dropout: what a run draws at random must go on where it was.
DROPOUT = json.dumps({**TINY_MODEL, "residual_dropout": 0.1, "embedding_dropout": 0.1})

# Exit status where a process may not do what a fault needs.
NOT_ALLOWED = 77

Fault = Callable[[], None]


class Run:
    """A run of the recipe, in `processes` processes.

    Args:
        corpus: Of the recipe.
        output_dir: Of the recipe.
        *faults: What goes wrong.
        processes: How many.
        environment: Variables of theirs, such as those by which accelerate turns DeepSpeed on.
        **fields: Of the recipe, in place of `RAMP`'s.
    """

    def __init__(
        self,
        corpus: Path,
        output_dir: Path,
        *faults: Fault,
        processes: int = 1,
        environment: dict[str, str] | None = None,
        **fields: Any,
    ):
        output_dir.mkdir(parents=True, exist_ok=True)
        self.output_dir = output_dir
        # Beside the run's folder: that is the run's own.
        self.log = output_dir.with_name(output_dir.name + ".log")
        argv = pretrain_arguments(corpus, output_dir, **{**RAMP, **fields})
        variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        variables.update(environment or {})
        if processes > 1:
            variables.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(processes))
        self.log.write_text("")
        self.processes = [
            PROCESSES.Process(target=_main, args=(rank, processes > 1, argv, variables, self.log, faults), daemon=True)
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """The exit codes, negative ones being signals; None of a process that did not end, which is killed."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        self.signal(signal.SIGKILL)
        return codes

    def signal(self, number: int, ranks: Iterable[int] | None = None) -> None:
        """Send a signal to the processes that are alive."""
        for rank, process in enumerate(self.processes):
            if process.pid is not None and process.is_alive() and (ranks is None or rank in ranks):
                os.kill(process.pid, number)

    @property
    def text(self) -> str:
        """What they have written so far."""
        return self.log.read_text(errors="replace")

    def finish(self) -> "Run":
        """Wait, and check that all is well."""
        codes = self.wait()
        assert codes == [0] * len(codes), f"{codes}\n{self.text}"
        return self


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _main(
    rank: int, several: bool, argv: list[str], variables: dict[str, str], log: Path, faults: tuple[Fault, ...]
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(variables)
    if several:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    # Programs start so; multiprocessing's forked processes may not.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    run_recipe(argv, faults)


def run_recipe(argv: list[str], faults: Iterable[Fault]) -> None:
    """Run the recipe in this process."""
    os.chdir(ROOT)
    sys.argv = ["recipes/pretrain.py", *argv]
    # A picture takes longer than all else in so short a run.
    wrap("hfgpt.training.callbacks.LossCurveCallback.draw", lambda *_: None)
    for fault in faults:
        fault()
    runpy.run_path("recipes/pretrain.py", run_name="__main__")


def with_faults(*faults: Fault) -> dict[str, str]:
    """The environment in which this file, as a script, has these faults."""
    return {"FAULTS": base64.b64encode(pickle.dumps(faults)).decode()}


# Outcomes


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder."""
    return load_file(folder / "model.safetensors")


def same_weights(folder: Path, other: Path) -> bool:
    """Whether both folders' weights are equal bit for bit."""
    a, b = weights(folder), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(folder: Path) -> list[dict[str, Any]]:
    """The log."""
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def losses(folder: Path) -> dict[int, float]:
    """The training loss by step."""
    return {entry["step"]: entry["loss"] for entry in history(folder) if "loss" in entry}


def steps_saved(folder: Path) -> list[int]:
    """The steps of the checkpoints."""
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def leftovers(folder: Path) -> list[str]:
    """What a save that did not come to its end has left."""
    return sorted(path.name for path in folder.glob("incomplete-*"))


def position(folder: Path) -> dict[str, Any]:
    """The position in the data of the newest checkpoint."""
    return json.loads((folder / f"checkpoint-{steps_saved(folder)[-1]}" / "data_position.json").read_text())


def pass_over_data(checkpoint: Path, sequences: int) -> None:
    """Change a checkpoint so that a run that resumes from it leaves out the next sequences."""
    file = checkpoint / "data_position.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sequences_skipped": sequences}))
    (checkpoint / MANIFEST_FILE).unlink()
    write_manifest(checkpoint, hash_files(checkpoint, files_below(checkpoint)))


def flip_a_bit(file: Path) -> None:
    """Change a file in its middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


# Faults


def this_rank() -> int:
    """The rank of this process."""
    return int(os.environ.get("RANK", "0"))


def wrap(target: str, wrapper: Callable[..., Any]) -> None:
    """Replace `package.module.name` or `package.module.Class.name` by `wrapper(original, *args, **kwargs)`."""
    words = target.split(".")
    for count in range(len(words) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(words[:count]))
        except ImportError:
            continue
        break
    for word in words[count:-1]:
        owner = getattr(owner, word)
    original = getattr(owner, words[-1])

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(owner, words[-1], call)


def at_call(target: str, numbers: Iterable[int], action: str, ranks: Iterable[int] | None = None) -> None:
    """At these calls of a function, counted from 1: send oneself a signal, such as SIGKILL, or find the disk full."""
    wanted, count = set(numbers), 0
    if ranks is not None and this_rank() not in ranks:
        return

    def wrapper(original: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count in wanted:
            if action == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            os.kill(os.getpid(), getattr(signal, action))
        return original(*args, **kwargs)

    wrap(target, wrapper)


def disk_full_for(target: str, part: str, ranks: Iterable[int] | None = None) -> None:
    """Find the disk full in each call of a function whose first argument is a path with this in it."""
    if ranks is not None and this_rank() not in ranks:
        return

    def wrapper(original: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if part in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, *args, **kwargs)

    wrap(target, wrapper)


def at_steps(steps: Iterable[int], action: Callable[[], None], ranks: Iterable[int] | None = None) -> None:
    """Act in the forward pass of these steps, each time that it is run."""
    wanted = set(steps)
    if ranks is not None and this_rank() not in ranks:
        return

    def wrapper(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step + 1 in wanted:
            action()
        return original(trainer, *args, **kwargs)

    wrap("hfgpt.training.trainer.PretrainingTrainer.compute_loss", wrapper)


def send_to_parent(name: str) -> None:
    """Send the launcher a signal, and leave it a moment to pass it on."""
    os.kill(os.getppid(), getattr(signal, name))
    time.sleep(0.5)


def kill_in_deletion(step: int) -> None:
    """Be killed where half of this step's checkpoint is deleted."""

    def wrapper(original: Any, folder: Any, *args: Any, **kwargs: Any) -> None:
        if Path(folder).name.endswith(f"deleted-checkpoint-{step}") and Path(folder).exists():
            (Path(folder) / "manifest.json").unlink()
            send("SIGKILL")
        original(folder, *args, **kwargs)

    wrap("shutil.rmtree", wrapper)


def send(name: str) -> None:
    """Send oneself a signal."""
    os.kill(os.getpid(), getattr(signal, name))


def small_file_system(folder: Path, bytes_: int, copy: Path) -> None:
    """Let a folder be a file system of so many bytes, for this process alone; what it holds in the end is copied.

    Where that is not allowed, the process ends with `NOT_ALLOWED`.
    """
    library = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if library.unshare(0x10000000 | 0x00020000):  # CLONE_NEWUSER, CLONE_NEWNS
        raise SystemExit(NOT_ALLOWED)
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError:
        raise SystemExit(NOT_ALLOWED) from None
    if library.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={bytes_}".encode()):
        raise SystemExit(NOT_ALLOWED)

    def wrapper(original: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            shutil.copytree(folder, copy)

    wrap("hfgpt.training.pretrain.pretrain", wrapper)


def fill_up(file: Path) -> None:
    """Write a file until there is no more room."""
    with file.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(4096)):
            pass


def limit_files(bytes_: int) -> None:
    """From here on no file of this process grows beyond so many bytes: what the kernel says is as of a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))


def nonfinite(
    steps: Iterable[int] = (),
    samples: Iterable[int] = (),
    times: int | None = None,
    what: str = "loss",
    ranks: Iterable[int] | None = None,
) -> None:
    """Make a loss, or the gradients alone, not finite: in these steps, or wherever one of these samples is read.

    Args:
        steps: Steps, the first being 1.
        samples: Samples of the training data.
        times: At so many micro-batches at most. Default: always.
        what: loss: with its gradients; gradients: alone; value: the loss without its gradients.
        ranks: In these processes. Default: all.
    """
    wanted, rows, left = set(steps), list(samples), times
    if ranks is not None and this_rank() not in ranks:
        return

    def wrapper(original: Any, trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        bad = trainer.state.global_step + 1 in wanted
        for row in rows:
            bad |= bool((inputs["input_ids"].cpu() == trainer.train_dataset[row]["input_ids"]).all(-1).any())
        loss = original(trainer, model, inputs, *args, **kwargs)
        if not bad or left == 0:
            return loss
        left = None if left is None else left - 1
        if what == "gradients":
            loss.register_hook(lambda gradient: gradient * float("nan"))
            return loss
        return loss * float("nan") if what == "loss" else loss + float("nan")

    wrap("transformers.Trainer.compute_loss", wrapper)


if __name__ == "__main__":
    run_recipe(sys.argv[1:], pickle.loads(base64.b64decode(os.environ["FAULTS"])))

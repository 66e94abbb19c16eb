"""What callbacks share: where they are seen, lines and files that never end a run, numbers for people."""

import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging


logger = logging.get_logger("hfgpt.training.callbacks")

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "nll", "error", "mse", "rmse", "mae", "wer", "cer", "ter")


def in_notebook() -> bool:
    """Whether what is displayed appears below a notebook's cell; no in a terminal, and in a process forked from a notebook."""
    ipython = sys.modules.get("IPython")  # a notebook has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    kernel = getattr(shell, "kernel", None)
    return kernel is not None and getattr(getattr(kernel, "session", None), "pid", os.getpid()) == os.getpid()


def shows_bars(args: TrainingArguments) -> bool:
    """Whether a progress bar is for anyone to see: not in a log file, however `disable_tqdm` is set."""
    return not args.disable_tqdm and (sys.stderr.isatty() or in_notebook())


class NotebookOutput:
    """One output of a notebook's cell, which is replaced in place; what it shows last stays in the saved notebook."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, content: Any) -> None:
        """Show `content`, an object of `IPython.display`, in place of what was there."""
        if self._handle is None:
            from IPython.display import display

            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


class NeverFails:
    """Lets errors of what only shows a run be warnings, of each kind one."""

    def __init__(self, what: str):
        self.what, self._told = what, set[type[Exception]]()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run the body; its exceptions are warnings."""
        try:
            yield
        except Exception as error:
            if type(error) not in self._told:
                self._told.add(type(error))
                logger.warning(f"{self.what}, training goes on: {str(error) or type(error).__name__}")


def lower_is_better(metric: str, greater_is_better: bool | None = None) -> bool:
    """Whether less of a metric is better, going by its name (`eval_loss`) where `greater_is_better` does not say."""
    if greater_is_better is not None:
        return not greater_is_better
    name = metric.removeprefix("eval_")
    return any(name == word or name.endswith(f"_{word}") for word in LOWER_IS_BETTER)


def finite_number(value: Any) -> bool:
    """Whether a logged value is a number that can be compared."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def peak_host_memory_bytes() -> int:
    """Most memory of the host that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_memory_bytes() -> int:
    """Most memory of its GPU that this process's tensors have held; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


class AddsToLogs(TrainerCallback):
    """Adds `metrics()` to the lines of training, unless the trainer has done so.

    A trainer of one's own does it in its `log`, before the line goes anywhere. With another Trainer it is done here:
    for its history and the callbacks after this one. `insert_in` puts it before what prints and reports.
    """

    marker: str

    def insert_in(self, trainer: Trainer) -> None:
        """Add this to a Trainer before all its other callbacks, so that its numbers are printed and reported too."""
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        callbacks.insert(0, self)

    def metrics(self) -> dict[str, float]:
        raise NotImplementedError

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add them."""
        if logs is not None and "loss" in logs and self.marker not in logs:
            added = self.metrics()
            logs.update(added)
            if state.log_history:
                state.log_history[-1].update(added)


def write_line(text: str) -> None:
    """Print above progress bars, at once; characters that standard output's encoding does not have as question marks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    tqdm.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


class _TrainingClock:
    """Seconds that went into something else than training while its clock was running."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    @contextmanager
    def stands_still(self, device: torch.device | None = None) -> Iterator[None]:
        """Leave the body out of training's speed, after what the device still has to do for training."""
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        began, self._depth = time.perf_counter(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.perf_counter() - began


training_clock = _TrainingClock()


@contextmanager
def disk_may_be_full(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        logger.warning(f"Could not write the {what}, training goes on: {error}")


def short_number(number: float) -> str:
    """300000000000 as 300B, 31457280 as 31.5M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def short_duration(seconds: float) -> str:
    """Two units at most: 3d 4h, 5m 20s."""
    seconds = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])

"""A run in the terminal: one line for people at each log step."""

import math
from collections.abc import Callable
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from .common import NeverFails, short_duration, short_number, shows_bars, write_line
from .stragglers import STRAGGLER_THRESHOLD
from .throughput import Progress


class TerminalCallback(ProgressCallback):
    """One line for people at each log step, in place of Trainer's dictionaries, above a bar where one is seen.

    There is no bar with `disable_tqdm`, nor where standard error is neither a terminal nor a notebook. Every number stays
    in `trainer_state.json`. It goes where Trainer's own was, which `replace_in` takes out.

    Args:
        progress: Where the run is, for the tokens at which it ends.

    Example:
        ```python
        from hfgpt.training.callbacks import TerminalCallback
        TerminalCallback().replace_in(trainer)
        trainer.train()
        ```
    """

    def __init__(self, progress: Progress | None = None):
        super().__init__()
        self.progress = progress
        self._guard = NeverFails("A line could not be printed")

    def replace_in(self, trainer: Trainer) -> None:
        """Take Trainer's own bar and dictionaries out, and put this in their place."""
        for own in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):
            trainer.pop_callback(own)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if shows_bars(args):
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar of an evaluation."""
        if shows_bars(args):
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the line."""
        if state.is_world_process_zero and logs:
            with self._guard():
                line = self.line(state, logs)
                if line:
                    write_line(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        """The line of one set of logs, such as `step 120/4,800  tokens 31.5M/300B  loss 5.432 ...`; may be empty."""
        logs = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
        goal = f"/{short_number(self.progress.train_tokens)}" if self.progress and self.progress.train_tokens else ""
        words = [f"step {state.global_step:,}/{state.max_steps:,}"]
        if "tokens" in logs:
            words.append(f"tokens {short_number(logs['tokens'])}{goal}")
        if "train_runtime" in logs:
            words.append(f"finished in {short_duration(logs['train_runtime'])}")
        skipped = logs.get("nonfinite_steps")
        if skipped:
            words.append(f"SKIPPED SO FAR: {skipped:,} step{'s' if skipped > 1 else ''} without finite gradients")
        shown = [word for key, value in logs.items() if key in _FORMATS and (word := _FORMATS[key](value)) is not None]
        # What another trainer or a task adds.
        shown += [
            f"{key.removeprefix('eval_').replace('_', ' ')} {value:.4g}"
            for key, value in logs.items()
            if key not in _FORMATS and key not in _NOT_SHOWN
        ]
        if not shown:
            return "  ".join(words) if len(words) > 2 else ""
        if any(key.startswith("eval_") for key in logs):
            shown[0] = f"held out: {shown[0]}"
            if "eval_runtime" in logs:
                shown.append(f"({short_duration(logs['eval_runtime'])})")
        return "  ".join(words + shown)


def _loss(value: float) -> str:
    return f"loss {value:.4f}" if math.isfinite(value) else "LOSS NOT FINITE"


def _gradient(value: float) -> str:
    return f"grad {value:.2f}" if math.isfinite(value) else "GRADIENTS NOT FINITE"


_FORMATS: dict[str, Callable[[Any], str | None]] = {
    "loss": _loss,
    "eval_loss": _loss,
    "train_loss": lambda value: f"mean loss {value:.4f}",
    "grad_norm": _gradient,
    "learning_rate": lambda value: f"lr {value:.2e}",
    "batch_tokens": lambda value: f"batch {short_number(value)}",
    "tokens_per_second": lambda value: f"{short_number(value)} tok/s",
    "mfu": lambda value: f"MFU {value:.1%}",
    "eta_seconds": lambda value: f"ETA {short_duration(value)}",
    "peak_device_memory_bytes": lambda value: f"mem {value / 2**30:.1f}GiB",
    "straggler_ratio": lambda value: f"slowest process {value:.2f}x" if value > STRAGGLER_THRESHOLD else None,
    "eval_perplexity": lambda value: f"perplexity {value:.4g}",
    "eval_bits_per_byte": lambda value: f"bits/byte {value:.4f}",
}
# The rest is for curves.
_NOT_SHOWN = {
    "epoch", "step", "tokens", "total_flos", "train_runtime", "eval_runtime", "train_samples_per_second", "train_steps_per_second",
    "eval_samples_per_second", "eval_steps_per_second", "mfu_banded", "model_tflops_per_second",
    "peak_host_memory_bytes", "nonfinite_steps",
}  # fmt: skip

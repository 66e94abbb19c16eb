"""Trainer callbacks: throughput and the loss curve. Usable with any Trainer."""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ThroughputCallback(TrainerCallback):
    """Tokens per second of training alone: data, forward, backward and optimizer, without evaluation and saving.

    Args:
        tokens_per_step: Tokens of one optimizer step, over all processes and accumulation steps.
    """

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self.seconds = 0.0
        self.steps = 0
        self._window = (0.0, 0)
        self._since = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self.steps += 1
        self._since = now

    def _leave_out(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    on_evaluate = _leave_out
    on_save = _leave_out

    def since_last_call(self) -> float | None:
        """Tokens per second since this was last asked; None without a step in between."""
        seconds, steps = self.seconds - self._window[0], self.steps - self._window[1]
        self._window = (self.seconds, self.steps)
        return steps * self.tokens_per_step / seconds if steps and seconds > 0 else None

    def overall(self) -> float | None:
        """Tokens per second of the run so far; None before the first step."""
        return self.steps * self.tokens_per_step / self.seconds if self.steps else None


class LossCurveCallback(TrainerCallback):
    """Writes the training and held-out loss against tokens as a PNG, at every evaluation and at the end.

    Args:
        path: The PNG.
        tokens_per_step: Tokens of one optimizer step.
    """

    def __init__(self, path: str | Path, tokens_per_step: int):
        self.path = Path(path)
        self.tokens_per_step = tokens_per_step

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Redraw."""
        if state.is_world_process_zero:
            self.draw(state.log_history)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Redraw a last time."""
        if state.is_world_process_zero:
            self.draw(state.log_history)

    def draw(self, log_history: list[dict[str, Any]]) -> None:
        """Draw the curves of a Trainer's log history."""
        # Not pyplot: no global state, and no window opens in a notebook or over ssh.
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter

        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
            points = [(entry["step"] * self.tokens_per_step, entry[key]) for entry in log_history if key in entry]
            if points:
                axes.plot(*zip(*points), style, label=label, markersize=4, linewidth=1.2)
        axes.set(xlabel="tokens", ylabel="loss (nats per token)")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path, dpi=120)

"""Curves of a run from its log history: a PNG at every evaluation, or a picture that lives in a notebook."""

import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...data.documents import written_whole
from .common import NeverFails, NotebookOutput, in_notebook, short_number, training_clock


LIVE_PLOT_FILE = "live_plot.png"
CURVES = ("loss", "eval_loss")  # of the first panel
LABELS = {"batch_tokens": "batch tokens", "tokens_per_second": "tokens / s", "grad_norm": "gradient norm"}


class LossCurveCallback(TrainerCallback):
    """Draws loss, learning rate and batch against tokens as a PNG, at every evaluation and at the end.

    All comes from the log history, which a checkpoint keeps: a resumed run's curves are whole. What fails in drawing is a
    warning.

    Args:
        path: The PNG.
        tokens_per_step: Tokens of one optimizer step, for logs that have no `tokens`; without them the axis is steps.

    Example:
        ```python
        from hfgpt.training.callbacks import LossCurveCallback
        trainer.add_callback(LossCurveCallback("loss_curve.png"))
        trainer.train()
        ```
    """

    def __init__(self, path: str | Path, tokens_per_step: int | None = None):
        self.path = Path(path)
        self.tokens_per_step = tokens_per_step
        self._guard = NeverFails("The loss curve could not be drawn")

    def _redraw(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with training_clock.stands_still(), self._guard():
                self.draw(state.log_history)

    on_evaluate = _redraw
    on_train_end = _redraw

    def draw(self, log_history: list[dict[str, Any]]) -> None:
        """Draw the curves of a Trainer's log history."""
        panels = ("learning_rate", "batch_tokens")
        figure = draw_curves(log_history, panels, self.tokens_per_step, loss_label="loss (nats per token)")
        save_figure(figure, self.path)

    def points(self, log_history: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
        """Tokens (or steps) and values of one quantity."""
        return curve_points(log_history, key, self.tokens_per_step)


class LivePlotCallback(TrainerCallback):
    """Draws a run while it goes on: loss and held-out loss, learning rate, gradient norm, batch and speed.

    A quantity has a panel once it is logged: for batch and speed add a `ThroughputCallback` before this one. In a notebook
    the picture is replaced in place below the cell, and the last one stays in the saved notebook. Elsewhere it is a PNG in
    the output folder, which appears whole or not at all. Only the first process draws; what fails in drawing is a warning.

    All comes from the log history, which a checkpoint keeps: a resumed run's picture is whole.

    Args:
        path: The PNG. Default: `live_plot.png` in `output_dir`, and none in a notebook.
        metrics: Further logged quantities, a panel each: `["eval_accuracy"]`.
        min_seconds: Seconds between two pictures; more where drawing takes more than a twentieth of them.
        tokens_per_step: Tokens of one optimizer step, for logs that have no `tokens`; without them the axis is steps.
        notebook: Whether to show it below the cell. Default: where this is a notebook.

    Raises:
        ValueError: `min_seconds` is below 0.

    Example:
        ```python
        from hfgpt.training.callbacks import LivePlotCallback
        trainer.add_callback(LivePlotCallback())
        trainer.train()
        ```
    """

    panels = ("learning_rate", "grad_norm", "batch_tokens", "tokens_per_second")

    def __init__(
        self,
        path: str | Path | None = None,
        metrics: Sequence[str] = (),
        min_seconds: float = 2.0,
        tokens_per_step: int | None = None,
        notebook: bool | None = None,
    ):
        if min_seconds < 0:
            raise ValueError(f"`min_seconds` must be at least 0, got {min_seconds}.")
        self.path = None if path is None else Path(path)
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        self.min_seconds, self.tokens_per_step, self.notebook = min_seconds, tokens_per_step, notebook
        self._output: NotebookOutput | None = None
        self._next = 0.0
        self._drawn: tuple[int, int] | None = None
        self._ended = False
        self._guard = NeverFails("The live plot could not be drawn")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin a picture; of a resumed run with what it has logged before."""
        shown = in_notebook() if self.notebook is None else self.notebook
        self._output = NotebookOutput() if shown else None
        self._next, self._drawn, self._ended = 0.0, None, False
        self._redraw(args, state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw, unless the last picture is of a moment ago."""
        if self._drawn is not None and not self._ended and time.monotonic() >= self._next:
            self._redraw(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the last picture."""
        self._redraw(args, state)
        self._ended = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw also what is evaluated after the last step."""
        if self._ended:
            self._redraw(args, state)

    def _redraw(self, args: TrainingArguments, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        version = (len(state.log_history), len(state.log_history[-1]) if state.log_history else 0)
        unchanged, self._drawn = version == self._drawn, version
        if not state.log_history or unchanged:
            return
        began = time.monotonic()
        with training_clock.stands_still(), self._guard():
            self.draw(state.log_history, args.output_dir)
        now = time.monotonic()
        self._next = now + max(self.min_seconds, 20 * (now - began))

    def draw(self, log_history: list[dict[str, Any]], output_dir: str | Path = ".") -> None:
        """Draw a Trainer's log history: below the cell, or to the PNG."""
        figure = draw_curves(log_history, (*self.panels, *self.metrics), self.tokens_per_step)
        if self._output is not None:
            from IPython.display import Image

            picture = io.BytesIO()
            figure.savefig(picture, dpi=100, format="png")
            self._output.show(Image(picture.getvalue(), format="png"))
        if self.path is not None or self._output is None:
            save_figure(figure, self.path or Path(output_dir) / LIVE_PLOT_FILE)


def draw_curves(
    log_history: list[dict[str, Any]],
    panels: Sequence[str],
    tokens_per_step: int | None = None,
    loss_label: str = "loss",
) -> Any:
    """A figure of a Trainer's log history.

    Args:
        log_history: `trainer.state.log_history`.
        panels: Logged quantities below the loss, a panel each; those without a point have none.
        tokens_per_step: As for `LivePlotCallback`.
        loss_label: Of the first panel.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    # Not pyplot: no global state, and no window opens in a notebook or over ssh.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    numbers = FuncFormatter(lambda value, _: short_number(value))
    curves = {key: curve_points(log_history, key, tokens_per_step) for key in (*CURVES, *panels)}
    lower = [key for key in dict.fromkeys(panels) if curves[key][0]]
    figure = Figure(figsize=(7.0, 4.0 + 1.3 * len(lower)), layout="constrained")
    axes_of = figure.subplots(
        1 + len(lower), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [4.0] + [1.3] * len(lower)}
    )[:, 0]
    raw, held_out = curves["loss"], curves["eval_loss"]
    smooth = smoothed(raw[1])
    if raw[0]:
        axes_of[0].plot(*raw, color="C0", linewidth=1.2, alpha=0.3 if smooth else 1.0, label="training")
    if smooth:
        axes_of[0].plot(raw[0], smooth, color="C0", linewidth=1.4, label="training, smoothed")
    if held_out[0]:
        axes_of[0].plot(*held_out, "o-", color="C1", markersize=4, linewidth=1.2, label="held out")
    axes_of[0].set_ylabel(loss_label)
    if axes_of[0].lines:
        axes_of[0].legend()
    for axes, key in zip(axes_of[1:], lower):
        style = {"drawstyle": "steps-pre"} if key == "batch_tokens" else {"marker": "."} if "eval" in key else {}
        axes.plot(*curves[key], color="C2", linewidth=1.2, **style)
        axes.set_ylabel(LABELS.get(key, key.replace("_", " ")))
        axes.yaxis.set_major_formatter(numbers)
        if not key.startswith("eval_") and min(curves[key][1]) >= 0:
            axes.set_ylim(bottom=0)
    for axes in axes_of:
        axes.grid(alpha=0.3)
    axes_of[-1].set_xlabel("tokens" if _in_tokens(log_history, tokens_per_step) else "steps")
    axes_of[-1].xaxis.set_major_formatter(numbers)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG that is whole or not there."""
    with written_whole(path) as temporary:
        try:
            figure.savefig(temporary, dpi=120, format="png")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _in_tokens(log_history: list[dict[str, Any]], tokens_per_step: int | None) -> bool:
    return tokens_per_step is not None or any("tokens" in entry for entry in log_history)


def curve_points(
    log_history: list[dict[str, Any]], key: str, tokens_per_step: int | None = None
) -> tuple[list[float], list[float]]:
    """Tokens (or steps) and values of one quantity."""
    tokens_at = {0: 0, **{entry["step"]: entry["tokens"] for entry in log_history if "tokens" in entry}}
    in_tokens = _in_tokens(log_history, tokens_per_step)
    xs: list[float] = []
    ys: list[float] = []
    for entry in log_history:
        value = entry.get(key)
        if isinstance(value, (int, float)):
            step = entry["step"]
            if in_tokens and step not in tokens_at:
                tokens_at[step] = step * tokens_per_step if tokens_per_step else _tokens_between(tokens_at, step)
            xs.append(tokens_at[step] if in_tokens else step)
            ys.append(value if math.isfinite(value) else math.nan)
    return xs, ys


def _tokens_between(tokens_at: dict[int, float], step: int) -> float:
    """Tokens at a step whose line does not say: between those around it, or on from the last at the mean before it."""
    before = max(known for known in tokens_at if known < step)
    after = min((known for known in tokens_at if known > step), default=None)
    if after is None:
        return tokens_at[before] * step / before if before else 0
    share = (step - before) / (after - before)
    return round(tokens_at[before] + share * (tokens_at[after] - tokens_at[before]))


def smoothed(values: list[float], share: float = 0.01) -> list[float]:
    """Exponential mean over that share of the curve; empty where the curve is too short to need it."""
    window = round(len(values) * share)
    if window < 2:
        return []
    keep, mean, weight, result = 1 - 1 / window, 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(mean / weight if weight else math.nan)
    return result

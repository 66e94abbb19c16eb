"""A watch on a run: steps that are not finite, and losses that jump."""

import json
import math
import statistics
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.state import AcceleratorState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_fsdp_managed_module

from .common import disk_may_be_full, finite_number, logger


EVENTS_FILE = "loss_events.jsonl"
MIN_VALUES = 20  # of a metric, before a jump can be told from noise
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
LEAST_DEVIATION = 0.01  # of the median: on a plateau noise is next to nothing


class LossWatchCallback(TrainerCallback):
    """Sees steps whose gradients are not finite, skips them, and tells of losses that jump; with any Trainer.

    Trainer takes a step whose loss is NaN, which makes every weight NaN, and with `logging_nan_inf_filter`, its default,
    leaves that loss out of its log. This looks at the gradients of every step, before the optimizer does: one norm, and one
    number from the device. What it finds is a warning, and a line in `loss_events.jsonl` in the output folder.

    A logged value is a spike where it is above the median of the 20 before it by `spike_deviations` standard deviations of
    the noise between one value and the next (at least a percent of the median each). Trainer's loss is a mean over
    `logging_steps`: log often to see short ones.

    Under DeepSpeed, which takes steps by itself, a step that is not finite is told and not skipped; in fp16, whose scaler
    skips such steps, and looks for its scale by them, only the log is watched. The Trainers of hfgpt skip by themselves,
    which is told, too.

    Args:
        nonfinite: "skip" leaves the weights as they are; "warn" tells, and lets the step be taken; "ignore" does not
            look at gradients.
        max_nonfinite_steps: So many in a row end training, without saving, with "skip" and with "warn".
        spike: "warn" only tells; "stop" ends training after `max_spikes`.
        max_spikes: So many spikes in a row end training, with `spike="stop"`, without saving.
        spike_deviations: Standard deviations above the median. Lower finds more.
        window: Logged values that the noise is taken from.
        metrics: What to look for spikes in: `loss`, and any other number that is logged and should not jump up.

    Attributes:
        events: What was found in this run, as in the file: `step`, `event` ("nonfinite", "spike" or "stop"), `metric`,
            `value` (as text where it is not finite), and of a spike `median` and `limit`.
        stop_reason: Why it ended training; None where it did not.

    Raises:
        ValueError: An unknown choice, or a number out of range.

    Example:
        ```python
        from hfgpt.training.callbacks import LossWatchCallback
        trainer.add_callback(LossWatchCallback())
        trainer.train()
        ```
    """

    def __init__(
        self,
        nonfinite: Literal["skip", "warn", "ignore"] = "skip",
        max_nonfinite_steps: int = 10,
        spike: Literal["warn", "stop"] = "warn",
        max_spikes: int = 3,
        spike_deviations: float = 6.0,
        window: int = 100,
        metrics: Sequence[str] = ("loss",),
    ):
        choices = {"nonfinite": (nonfinite, ("skip", "warn", "ignore")), "spike": (spike, ("warn", "stop"))}
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
        for name, number, least in (
            ("max_nonfinite_steps", max_nonfinite_steps, 1),
            ("max_spikes", max_spikes, 1),
            ("window", window, MIN_VALUES),
        ):
            if number < least:
                raise ValueError(f"`{name}` must be at least {least}, got {number}.")
        if not spike_deviations > 0:
            raise ValueError(f"`spike_deviations` must be above 0, got {spike_deviations}.")
        self.nonfinite, self.max_nonfinite_steps = nonfinite, max_nonfinite_steps
        self.spike, self.max_spikes, self.spike_deviations, self.window = spike, max_spikes, spike_deviations, window
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        self._reset()

    def _reset(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop_reason: str | None = None
        self.nonfinite_in_a_row = 0
        self._values = {metric: deque[float](maxlen=self.window) for metric in self.metrics}
        self._spikes_in_a_row = dict.fromkeys(self.metrics, 0)
        self._sees_gradients = True
        self._not_finite: set[str] = set()  # metrics whose last logged value was not
        self._skipped_by_trainer = 0
        self._last_nonfinite_step = 0
        self._logged_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start anew; of a resumed run with what it has logged before."""
        self._reset()
        for entry in state.log_history:
            for metric, values in self._values.items():
                if finite_number(entry.get(metric)):
                    values.append(entry[metric])
            self._skipped_by_trainer = max(self._skipped_by_trainer, entry.get("nonfinite_steps", 0))
        self._sees_gradients = self.nonfinite != "ignore" and AcceleratorState().mixed_precision != "fp16"
        if (
            self.nonfinite != "ignore"
            and not self._sees_gradients
            and args.logging_nan_inf_filter
            and state.is_world_process_zero
        ):
            logger.warning(
                "LossWatchCallback sees only the log in fp16, and `logging_nan_inf_filter` hides losses there that are not "
                "finite: set it to False."
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Any:
        """Look at the gradients of a step."""
        if not self._sees_gradients:
            return
        norm, gradients = _norm_of_gradients(kwargs["model"], kwargs.get("optimizer"))
        if norm is None:
            return
        if math.isfinite(norm):
            self.nonfinite_in_a_row = 0
            return
        step = state.global_step + 1
        self.nonfinite_in_a_row += 1
        self._last_nonfinite_step = step
        skipped = self.nonfinite == "skip" and bool(gradients)
        if skipped:
            kwargs["model"].zero_grad(set_to_none=True)
        if not gradients:
            words = "DeepSpeed has dealt with it"
        else:
            words = "Skipped" if skipped else "Taken all the same (`nonfinite`)"
        what = f"Step {step:,}: the loss or the gradients are not finite (gradient norm {norm})"
        self._tell(args, state, f"{what}. {words}.", step, event="nonfinite", metric="grad_norm", value=norm)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        """End training where steps have failed too often."""
        if self.nonfinite_in_a_row >= self.max_nonfinite_steps:
            reason = (
                f"The loss or the gradients were not finite in {self.nonfinite_in_a_row} steps in a row, the last being "
                f"{state.global_step:,} (`max_nonfinite_steps`). Look at the data and the learning rate"
            )
            self._stop(args, state, control, reason)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Any:
        """Save nothing of a run that was ended, with `save_strategy="epoch"` too."""
        if self.stop_reason is not None:
            control.should_save = False
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Look at what is logged."""
        logs = logs or {}
        step = state.global_step
        skipped = logs.get("nonfinite_steps", 0)
        if isinstance(skipped, int) and skipped > self._skipped_by_trainer:  # counted by hfgpt's own Trainers
            self._tell(
                args, state, None, step, event="nonfinite", metric="nonfinite_steps",
                value=skipped - self._skipped_by_trainer,
            )  # fmt: skip
            self._skipped_by_trainer = skipped
        for metric in dict.fromkeys((*self.metrics, "loss", "grad_norm")):
            value = logs.get(metric)
            if not isinstance(value, (int, float)):
                continue
            if not math.isfinite(value):
                self._not_finite_in_log(args, state, metric, value)
            else:
                self._not_finite.discard(metric)
                if metric in self._values:
                    self._look_for_spike(args, state, control, metric, value)
        if "loss" in logs:
            self._logged_step = step
        return control

    def _not_finite_in_log(self, args: TrainingArguments, state: TrainerState, metric: str, value: float) -> None:
        # Trainer's sum of losses stays NaN for good once a step was; and a step that was seen was told.
        known = metric in self._not_finite or self._last_nonfinite_step > self._logged_step
        self._not_finite.add(metric)
        if not known:
            words = f"Step {state.global_step:,}: the logged `{metric}` is not finite ({value})."
            self._tell(args, state, words, state.global_step, event="nonfinite", metric=metric, value=value)

    def _look_for_spike(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metric: str, value: float
    ) -> None:
        values = self._values[metric]
        enough = len(values) >= MIN_VALUES
        median, limit = spike_limit(values, self.spike_deviations) if enough else (math.nan, math.inf)
        if value > limit:
            self._spikes_in_a_row[metric] += 1
            words = (
                f"Step {state.global_step:,}: `{metric}` jumped to {value:.4g}, from a median of {median:.4g} in the "
                f"{MIN_VALUES} lines before."
            )
            self._tell(
                args, state, words, state.global_step, event="spike", metric=metric, value=value, median=median,
                limit=limit,
            )  # fmt: skip
            if self.spike == "stop" and self._spikes_in_a_row[metric] >= self.max_spikes:
                count = self._spikes_in_a_row[metric]
                reason = (
                    f"`{metric}` was far above its median in {count} log lines in a row, the last being step "
                    f"{state.global_step:,}. Nothing was saved of it: lower the learning rate, or go on from an earlier "
                    "checkpoint"
                )
                self._stop(args, state, control, reason)
        else:
            self._spikes_in_a_row[metric] = 0
        values.append(value)

    def _stop(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, reason: str) -> None:
        control.should_training_stop, control.should_save = True, False
        if self.stop_reason is None:
            self.stop_reason = reason
            words = f"Training ends at step {state.global_step:,}: {reason}."
            self._tell(args, state, words, state.global_step, event="stop", reason=reason)

    def _tell(self, args: TrainingArguments, state: TrainerState, words: str | None, step: int, **event: Any) -> None:
        """One event: a warning, and a line of the file, by the first process."""
        values = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in event.items()
        }
        self.events.append({"step": step, **values})
        if not state.is_world_process_zero:
            return
        if words is not None:
            logger.warning(words)
        with disk_may_be_full("loss events"):
            file = Path(args.output_dir) / EVENTS_FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(self.events[-1], ensure_ascii=False) + "\n")


def loss_watch_stop_reason(trainer: Any) -> str | None:
    """Why a trainer's `LossWatchCallback` ended the run; None where none did."""
    watches = (c for c in trainer.callback_handler.callbacks if isinstance(c, LossWatchCallback))
    return next((watch.stop_reason for watch in watches if watch.stop_reason), None)


def spike_limit(values: Sequence[float], deviations: float) -> tuple[float, float]:
    """Where the next value is expected, and above what it is a spike.

    The level is the median of the last values. The noise is what they differ from one to the next, by the median too, so
    that neither spikes nor the slope of a falling loss count as noise.

    Args:
        values: The values before it, `MIN_VALUES` or more.
        deviations: Standard deviations of the noise.
    """
    level = statistics.median(list(values)[-MIN_VALUES:])
    steps = [after - before for before, after in pairwise(values)]
    middle = statistics.median(steps)
    noise = MAD_TO_DEVIATION * statistics.median(abs(step - middle) for step in steps) / math.sqrt(2)
    return level, level + deviations * max(noise, LEAST_DEVIATION * abs(level))


@torch.no_grad()
def _norm_of_gradients(model: Any, optimizer: Any) -> tuple[float | None, list[torch.Tensor]]:
    """The norm of a step's gradients over all processes, and the gradients; None where it is not known.

    All processes of a sharded model must ask together; elsewhere each has the same gradients.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients:  # DeepSpeed's optimizer knows
        inner = getattr(optimizer, "optimizer", None)
        norm = math.nan if getattr(inner, "overflow", False) else getattr(inner, "_global_grad_norm", None)
        return (None if norm is None else float(norm)), []
    by_mesh: dict[Any, list[torch.Tensor]] = {}  # those of several cannot be taken together
    for gradient in gradients:
        by_mesh.setdefault(getattr(gradient, "device_mesh", None), []).append(gradient)
    norms = []
    for mesh, group in by_mesh.items():
        norm = torch.nn.utils.get_total_norm(group)
        norms.append(norm if mesh is None else norm.full_tensor())
    total = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
    if None in by_mesh and torch.distributed.is_initialized() and is_fsdp_managed_module(model):
        torch.distributed.all_reduce(total)  # of FSDP1 each process has a part: the sum is finite where all are
    return float(total), gradients

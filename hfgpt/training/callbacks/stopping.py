"""The end of a run by a metric."""

from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from .common import finite_number, logger, lower_is_better


class MetricStoppingCallback(EarlyStoppingCallback):
    """Ends training when a logged metric no longer improves, or has reached a target.

    As transformers' `EarlyStoppingCallback`, but for any logged number, with or without `load_best_model_at_end` and saving;
    and it goes by the log history, which a checkpoint keeps: patience goes on after a resume, with nothing to set. Where
    `save_strategy` is not "no" or "best", the step it stops at is saved.

    Args:
        metric: As it is logged: `eval_loss`, `eval_bits_per_byte`, `eval_accuracy`, or `loss` of training.
        patience: Values in a row without improvement at which training ends. None: only at `target`.
        min_delta: What a value must be better by than the best before it, to be an improvement.
        relative: `min_delta` is a share of that best value: 0.01 is one percent.
        target: End training once the metric is this good.
        greater_is_better: Default: by the name; losses, perplexities, bits per byte and errors are to fall, others to rise.

    Raises:
        ValueError: `patience` is below 1, `min_delta` below 0, or there is neither patience nor target. Before the first
            step: the metric is one of evaluations, and there are none.

    Example:
        ```python
        from hfgpt.training.callbacks import MetricStoppingCallback
        trainer.add_callback(MetricStoppingCallback("eval_loss", patience=3, min_delta=0.01))
        trainer.train()
        ```
    """

    def __init__(
        self,
        metric: str = "eval_loss",
        patience: int | None = 3,
        min_delta: float = 0.0,
        relative: bool = False,
        target: float | None = None,
        greater_is_better: bool | None = None,
    ):
        if patience is None and target is None:
            raise ValueError("Give `patience` or a `target`: without both nothing ends the run.")
        if patience is not None and patience < 1:
            raise ValueError(f"`patience` must be at least 1, got {patience}.")
        if not min_delta >= 0:
            raise ValueError(f"`min_delta` must be at least 0, got {min_delta}.")
        super().__init__(patience or 0, min_delta)
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.relative, self.target, self.greater_is_better = relative, target, greater_is_better
        self.sign = -1.0 if lower_is_better(metric, greater_is_better) else 1.0
        self.stop_reason: str | None = None
        self._missed, self._seen = False, set[str]()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look whether there will be such a metric.

        Raises:
            ValueError: It is one of evaluations, and there are none.
        """
        self.stop_reason, self._missed, self._seen = None, False, set()
        if self.metric.startswith("eval_") and args.eval_strategy == IntervalStrategy.NO:
            raise ValueError(
                f"Training cannot end by `{self.metric}` with `eval_strategy: no`: evaluate by steps or epoch, or name a "
                "metric of training, such as loss."
            )
        # Trainer takes it for granted in every save, and a checkpoint of before does not have it.
        state.stateful_callbacks = state.stateful_callbacks or {}
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._count(state.log_history)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Look at all values so far, where there is a new one."""
        if logs is None or self.metric not in logs:
            return control
        best, best_step = self._count(state.log_history)
        value = logs[self.metric]
        if self.target is not None and finite_number(value) and self.sign * (value - self.target) >= 0:
            self.stop_reason = f"`{self.metric}` is {value:.6g}, and {self.target:.6g} was asked for"
        if self.patience is not None and self.early_stopping_patience_counter >= self.patience:
            been = "was never a finite number" if best is None else f"was best at step {best_step:,}, {best:.6g}"
            self.stop_reason = (
                f"`{self.metric}` {been}, and {self.early_stopping_patience_counter} values since were no better"
            )
        if self.stop_reason is not None:
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy in ("steps", "epoch")
            if state.is_world_process_zero:
                logger.warning(f"Training ends at step {state.global_step:,}: {self.stop_reason}.")
        return control

    def on_evaluate(  # in place of transformers', which goes by `args.metric_for_best_model`
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Remember what an evaluation has: of several sets each is told by itself."""
        if self.metric.startswith("eval_") and not self._missed:
            self._seen.update(name for name, value in (metrics or {}).items() if finite_number(value))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell where the evaluations since the last step did not have the metric."""
        if not self._seen or self._missed:
            return
        if not any(self.metric in entry for entry in state.log_history):
            self._missed = True
            if state.is_world_process_zero:
                known = ", ".join(sorted(self._seen))
                logger.warning(f"Training does not end early: no `{self.metric}` is logged. There are {known}.")
        self._seen.clear()

    on_train_end = on_step_begin

    def _count(self, log_history: list[dict[str, Any]]) -> tuple[float | None, int]:
        """The best value and its step; the count of values since is kept where transformers has it."""
        best, best_step, since = None, 0, 0
        for entry in log_history:
            if self.metric not in entry:
                continue
            value = entry[self.metric]
            since += 1
            if not finite_number(value):
                continue
            delta = self.min_delta * (abs(best) if self.relative and best is not None else 1.0)
            better = best is None or (self.sign * (value - best) > 0 and abs(value - best) >= delta)
            if better:
                best, best_step, since = value, entry.get("step", 0), 0
        self.early_stopping_patience_counter = since
        return best, best_step

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, in transformers' form; the log history alone decides."""
        names = ("metric", "patience", "min_delta", "relative", "target", "greater_is_better")
        return {
            "args": {name: getattr(self, name) for name in names},
            "attributes": {"early_stopping_patience_counter": self.early_stopping_patience_counter},
        }

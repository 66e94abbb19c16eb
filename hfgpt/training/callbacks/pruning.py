"""Which checkpoints of a run stay."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ...manifest import MANIFEST_FILE, checkpoint_step, list_checkpoints, remove, sizes_problem
from .common import finite_number, logger, lower_is_better


class CheckpointPruningCallback(TrainerCallback):
    """Deletes checkpoints after each save, but the newest, those at intervals and the best; with any Trainer.

    Whatever is asked for, these stay: the one just saved, the newest that is whole, the one this run was resumed from, the
    one that Trainer calls the best, and any that a link in the output folder points to. Nothing is deleted but real folders
    named `checkpoint-STEP` directly in the output folder that a Trainer has finished writing. A checkpoint loses its name
    before its files go, so that half of one is never resumed from. A deletion that fails is a warning.

    A folder that holds checkpoints of later steps than the run's own, of another run or of one that was rolled back, is told
    before the first step: they count as older than all of this run, and are the first to go.

    Args:
        keep_last: The newest to keep.
        keep_every_steps: Keep those at multiples of so many steps for good.
        keep_every_tokens: Keep the first at or past each multiple of so many tokens for good, by what Trainer has logged
            (`tokens`, from `ThroughputCallback`, or `include_num_input_tokens_seen`); one of which they are not known stays.
        keep_best: So many of the best by `metric`, of those that were evaluated at their step.
        metric: As it is logged, such as `eval_loss`.
        greater_is_better: Default: by the name; losses, perplexities, bits per byte and errors are to fall, others to rise.
        dry_run: Only tell what would be deleted.

    Raises:
        ValueError: A number is below 1 (`keep_best`: below 0). Before the first step: `save_total_limit` is set, by which
            Trainer deletes others.

    Example:
        ```python
        from hfgpt.training.callbacks import CheckpointPruningCallback
        trainer.add_callback(CheckpointPruningCallback(keep_last=2, keep_best=1, metric="eval_loss"))
        trainer.train()
        ```
    """

    def __init__(
        self,
        keep_last: int = 2,
        keep_every_steps: int | None = None,
        keep_every_tokens: int | None = None,
        keep_best: int = 0,
        metric: str = "eval_loss",
        greater_is_better: bool | None = None,
        dry_run: bool = False,
    ):
        for name, value in (
            ("keep_last", keep_last),
            ("keep_every_steps", keep_every_steps),
            ("keep_every_tokens", keep_every_tokens),
        ):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if keep_best < 0:
            raise ValueError(f"`keep_best` must be at least 0, got {keep_best}.")
        self.keep_last, self.keep_every_steps, self.keep_every_tokens = keep_last, keep_every_steps, keep_every_tokens
        self.keep_best, self.metric, self.dry_run = keep_best, metric, dry_run
        self.lower_is_better = lower_is_better(metric, greater_is_better)
        self._resumed_step: int | None = None
        self._told: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember where the run is resumed from.

        Raises:
            ValueError: Trainer deletes checkpoints, too.
        """
        self._told = set()
        self._resumed_step = state.global_step or None
        if args.save_total_limit is not None and args.save_total_limit > 0:
            raise ValueError(
                f"`save_total_limit` ({args.save_total_limit}) has Trainer delete checkpoints that CheckpointPruningCallback "
                f"is to keep: set it to None, and here `keep_last={args.save_total_limit}`."
            )
        try:
            later = [folder.name for folder in list_checkpoints(args.output_dir) if _is_later(folder, state)]
        except OSError:  # told at the first save
            later = []
        if later and args.should_save:
            self._tell(
                f"{args.output_dir} has checkpoints of later steps than this run's {state.global_step:,}: "
                f"{', '.join(later)}. They count as older than what this run saves, and are deleted first: move away what "
                "you want to keep, or use another `output_dir`."
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Delete what is not to be kept."""
        if not args.should_save:
            return
        try:
            doomed = self.to_delete(args.output_dir, state)
        except OSError as error:
            logger.warning(f"Checkpoints could not be listed: {error}")
            return
        for folder in doomed:
            if self.dry_run:
                self._tell(f"{folder} would be deleted (`dry_run`).")
                continue
            try:
                remove(folder)
            except OSError as error:
                self._tell(f"A checkpoint could not be deleted: {error}")

    def to_delete(self, output_dir: str | Path, state: TrainerState) -> list[Path]:
        """The checkpoints that would go now, newest first; deletes nothing.

        Args:
            output_dir: Folder of the run.
            state: `trainer.state`, for the step, the metric and what Trainer calls the best.
        """
        # Newest first, and then what this run has not come to: of another run, or of before a rollback.
        folders = sorted(list_checkpoints(output_dir), key=lambda folder: _is_later(folder, state))
        whole = [folder for folder in folders if _is_whole(folder)]
        kept = {*folders[:1], *whole[: self.keep_last]}
        kept.update(self._at_intervals(whole))
        kept.update(self._best(whole, state.log_history))
        protected = {checkpoint_step(Path(state.best_model_checkpoint))} if state.best_model_checkpoint else set()
        protected.update((self._resumed_step, state.global_step))
        linked = {link.resolve() for link in Path(output_dir).iterdir() if link.is_symlink()}
        doomed = []
        for folder in folders:
            if folder in kept or checkpoint_step(folder) in protected:
                continue
            if folder.is_symlink() or folder.resolve() in linked:
                continue
            if (folder / TRAINER_STATE_NAME).is_file():
                doomed.append(folder)
            else:
                self._tell(
                    f"{folder} stays: it has no {TRAINER_STATE_NAME}, and may be no checkpoint, or half of one."
                )
        return doomed

    def _at_intervals(self, folders: list[Path]) -> Iterable[Path]:
        """Those that stay for good."""
        first: dict[int, Path] = {}
        for folder in folders:  # newest first
            if self.keep_every_steps and (checkpoint_step(folder) or 0) % self.keep_every_steps == 0:
                yield folder
            if self.keep_every_tokens:
                tokens = tokens_of(folder)
                if tokens is None:
                    self._tell(
                        f"{folder} stays: how many tokens it has seen is not known (`keep_every_tokens`). Add a "
                        "ThroughputCallback, or set `include_num_input_tokens_seen`."
                    )
                    yield folder
                elif tokens >= self.keep_every_tokens:
                    first[tokens // self.keep_every_tokens] = folder
        yield from first.values()

    def _best(self, folders: list[Path], log_history: list[dict[str, Any]]) -> list[Path]:
        values = {entry["step"]: entry[self.metric] for entry in log_history if finite_number(entry.get(self.metric))}
        scored = [folder for folder in folders if checkpoint_step(folder) in values]
        if self.keep_best and len(folders) > self.keep_last and not scored:
            self._tell(
                f"No checkpoint is kept as the best: none has a `{self.metric}` of its step. Evaluate where the run saves."
            )
        sign = 1 if self.lower_is_better else -1
        return sorted(scored, key=lambda folder: sign * values[checkpoint_step(folder) or 0])[: self.keep_best]

    def _tell(self, words: str) -> None:
        if words not in self._told:  # once a run
            self._told.add(words)
            logger.warning(words)


def _is_later(folder: Path, state: TrainerState) -> bool:
    """Whether a checkpoint is of a step that the run has not come to."""
    return (checkpoint_step(folder) or 0) > state.global_step


def _is_whole(folder: Path) -> bool:
    """Whether a Trainer has come to the end of writing a checkpoint: its state is the last file, or there is a manifest."""
    if not (folder / TRAINER_STATE_NAME).is_file():
        return False
    return not (folder / MANIFEST_FILE).exists() or sizes_problem(folder)[0] is None


def tokens_of(checkpoint: Path) -> int | None:
    """The tokens that a checkpoint's run had seen, by its log; None where it does not say."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        if state.get("num_input_tokens_seen"):
            return int(state["num_input_tokens_seen"])
        return next((int(entry["tokens"]) for entry in reversed(state["log_history"]) if "tokens" in entry), None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None

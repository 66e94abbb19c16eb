"""TensorBoard, trackio and others of `report_to`, fit for long runs."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from .common import logger


TENSORBOARD_FOLDER = "runs"
REPORTER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",)}


def require_reporters(report_to: list[str] | str | None) -> None:
    """Check that what `report_to` names is installed, before anything is loaded.

    Raises:
        ValueError: A package is missing.
    """
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        packages = REPORTER_PACKAGES.get(name, ())
        if packages and not any(find_spec(package) for package in packages):
            raise ValueError(f"`report_to: {name}` needs {packages[0]}: pip install 'hfgpt[report]'.")


class _TensorBoardInOutputDir(TensorBoardCallback):
    logging_dir: str | None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.logging_dir is None:
            self.logging_dir = os.path.join(args.output_dir, TENSORBOARD_FOLDER)
        if state.is_world_process_zero:
            # Of steps that are done again, or that were another run's, the older points go.
            first = state.global_step + 1 if state.global_step else 0
            self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=first)
        super().on_train_begin(args, state, control, **kwargs)


def set_up_reporters(trainer: Trainer) -> None:
    """Make the reporters of `report_to` fit for long runs; for the constructor of a trainer.

    TensorBoard's files go to `output_dir/runs`, unless TENSORBOARD_LOGGING_DIR says where, and a resumed run goes on
    in its own curves. A reporter that fails during training, say on a full disk, is dropped with a warning.
    """
    callbacks = trainer.callback_handler.callbacks
    for index, callback in enumerate(callbacks):
        if type(callback) is TensorBoardCallback:
            callbacks[index] = callback = _TensorBoardInOutputDir()
        if isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values())):
            _survive(callback)


def _survive(callback: TrainerCallback) -> None:
    """Let failures of a reporter be warnings; but what is wrong with its settings still shows before training."""
    failed = False

    def guarded(method: Callable[..., Any], errors: type[Exception]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            nonlocal failed
            if not failed:
                try:
                    method(*args, **kwargs)
                except errors as error:
                    failed = True
                    logger.warning(f"{type(callback).__name__} failed and is left out from here on: {error!r}")

        return call

    for event in ("on_train_begin", "on_step_end", "on_evaluate", "on_predict", "on_save", "on_log", "on_train_end"):
        errors = OSError if event == "on_train_begin" else Exception
        setattr(callback, event, guarded(getattr(callback, event), errors))

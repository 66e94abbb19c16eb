"""transformers' Trainer for tasks: losses of the three heads, and evaluation by asking as the task asks.

Notable: the plain language-model head keeps the model's own loss, which for gpt3 never holds all logits; weighted losses
and the other heads go through Trainer's `compute_loss_func`, so that they too are divided by what all processes and
accumulated batches hold together. Each process predicts its share of the rows.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.utils import logging

from ..data.packing import IGNORE_INDEX
from ..tasks.metrics import score
from ..tasks.saved import TaskRecord, save_task
from ..tasks.scoring import Prediction, predict
from . import checkpoints
from .arguments import FinetuningArguments
from .launch import tensor_parallel_size
from .optimizer import muon_adam_for
from .saving import SavingTrainer
from .task_rows import EncodedExamples


logger = logging.get_logger(__name__)


class TaskTrainer(SavingTrainer):
    """Trainer that evaluates by predicting what a task asks for; `task.json` is saved beside the weights.

    Args:
        record: The task as the model is trained for it.
        validation: Rows that `evaluate` scores.
        **kwargs: As for `transformers.Trainer`, with `processing_class`.
    """

    args: FinetuningArguments
    control: Any
    optimizer: Any
    state: Any

    def __init__(self, *, record: TaskRecord, validation: EncodedExamples | None = None, **kwargs: Any):
        # Trainer asks for a dataset where it evaluates during training; `evaluate` takes its own.
        super().__init__(eval_dataset=None if validation is None else validation.encoded, **kwargs)
        self.record, self.validation = record, validation
        self.nonfinite_steps = self.nonfinite_in_a_row = 0
        self._weights = self._targets = torch.empty(0)
        weighted = "loss_weights" in self.data_collator(self.train_dataset[:1])
        losses: dict[str, Any] = {"classification": self._class_loss, "span": self._span_loss}
        self.compute_loss_func = losses.get(record.head, self._token_loss if weighted else None)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's, or with `muon` that for the matrices of the blocks."""
        if self.optimizer is None and self.args.muon:
            self.optimizer = muon_adam_for(self, model)
        return super().create_optimizer(model)

    # Loss

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with what the loss functions below need and the model does not take set aside."""
        if "loss_weights" in inputs:
            inputs = dict(inputs)
            self._weights, self._targets = inputs.pop("loss_weights"), inputs["input_ids"]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _token_loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Cross entropy of tokens by their weights, over the number of tokens in completions."""
        logits = outputs["logits"][:, :-1]
        weights = self._weights[:, 1:]
        targets = self._targets[:, -weights.shape[1] :]
        kept = weights > 0
        losses = F.cross_entropy(
            logits[kept].float(), targets[kept], reduction="none", label_smoothing=self.args.label_smoothing_factor
        )
        items = labels[:, 1:].ne(IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        return (losses * weights[kept]).sum() / items

    def _class_loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Cross entropy of classes by the rows' weights, over the number of rows."""
        losses = F.cross_entropy(
            outputs["logits"].float(), labels, reduction="none", label_smoothing=self.args.label_smoothing_factor
        )
        if self._weights.numel():
            losses = losses * self._weights
        return losses.sum() / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def _span_loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Mean cross entropy of the first and the last token of the answer, among all tokens of the prompt."""
        ends = zip((outputs["start_logits"], outputs["end_logits"]), labels.unbind(-1))
        losses = [F.cross_entropy(logits.float(), positions, reduction="sum") for logits, positions in ends]
        return (losses[0] + losses[1]) / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """As Trainer's, which would take a step whose gradients are no numbers, and hide it from the log."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is not None:  # fp16: skipping such steps is how the scale is found
            return norm
        if norm is None or math.isfinite(float(norm)):
            self.nonfinite_in_a_row = 0
            return norm
        if not self.is_deepspeed_enabled:  # which has not taken the step
            model.zero_grad(set_to_none=True)
        self.nonfinite_steps += 1
        self.nonfinite_in_a_row += 1
        step = self.state.global_step + 1
        if self.is_world_process_zero():
            logger.warning(f"Step {step}: the loss or the gradients are not finite (gradient norm {norm}). Skipped.")
        if self.nonfinite_in_a_row >= self.args.max_nonfinite_steps:
            raise ValueError(
                f"The loss or the gradients were not finite in {self.nonfinite_in_a_row} steps in a row, the last being "
                f"{step} (`max_nonfinite_steps`). Look at the data and the learning rate, or try another "
                "`attn_implementation`."
            )
        return norm

    # Evaluation

    def predict_rows(self, rows: EncodedExamples, num_beams: int | None = None) -> list[Prediction]:
        """What the model answers, by all processes together; each of them gets all answers.

        Args:
            rows: What to ask.
            num_beams: Of written answers. Default: the task's.
        """
        args = self.args
        # Processes that hold one model together are asked the same.
        group = max(self.get_tp_size(), tensor_parallel_size(args))
        rank, world = args.process_index // group, args.world_size // group
        share = range(rank, len(rows), world) or range(1)  # sharded weights are gathered by all: nobody stays away
        answers = predict(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.record.task,
            [rows.examples[index] for index in share],
            [rows.encoded[index] for index in share],
            head=self.record.head,
            num_beams=num_beams,
            autocast=torch.autocast(args.device.type, torch.bfloat16) if args.bf16 else nullcontext(),
            progress=not args.disable_tqdm and self.is_world_process_zero(),
            synced_gpus=self._is_sharded(),
        )
        if args.world_size == 1:
            return answers
        predictions: dict[int, Prediction] = {}
        for first, part in gather_object([(rank, answers)]):
            predictions.update(zip(range(first, len(rows), world), part))
        return [predictions[index] for index in range(len(rows))]

    def _is_sharded(self) -> bool:
        """Whether each layer is gathered from all processes when it is used."""
        zero = self.accelerator.state.deepspeed_plugin.zero_stage if self.is_deepspeed_enabled else 0
        return zero == 3 or self.is_fsdp_enabled

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Score the validation rows: the task's metrics, answers written greedily.

        Raises:
            ValueError: There are none.
        """
        if self.validation is None:
            raise ValueError("There are no validation rows: give `validation_path` or `validation_fraction`.")
        predictions = self.predict_rows(self.validation, num_beams=1)
        scores = score(self.record.task, predictions, self.validation.examples)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            with self._noting_problems():
                save_task(self.record, output_dir or self.args.output_dir)

    def save_extra_state(self, folder: Path) -> None:
        """Which checkpoint is the best, by the name it will have: Trainer has looked for it where this one is written."""
        self.state.best_model_checkpoint = self._best_checkpoint(folder)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _best_checkpoint(self, being_written: Path | None = None) -> str | None:
        step = self.state.best_global_step
        if not step:
            return None
        best = Path(self.args.output_dir) / f"checkpoint-{step}"
        return str(best) if best.is_dir() or (being_written is not None and being_written.name == best.name) else None

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As `SavingTrainer`'s, whose rotation does not know of a best checkpoint."""
        limit = self.args.save_total_limit
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.state.best_model_checkpoint = self._best_checkpoint()
        if self.args.should_save and limit is not None:
            best = self._best_checkpoint() if self.args.load_best_model_at_end else None
            for folder in checkpoints.list_checkpoints(self.args.output_dir)[max(limit, 1) :]:
                if str(folder) != best:
                    try:
                        checkpoints.remove(folder)
                    except OSError as error:
                        logger.warning(f"A checkpoint could not be deleted: {error}")
        self.accelerator.wait_for_everyone()


class EarlyStopping(TrainerCallback):
    """Ends training after so many evaluations that were no better than the best before them.

    transformers' own keeps a count of its own, which a resumed run starts anew; this one goes by the logged history.

    Args:
        metric: Such as "accuracy"; more is better.
        patience: Evaluations without improvement.
    """

    def __init__(self, metric: str, patience: int):
        self.metric, self.patience = f"eval_{metric.removeprefix('eval_')}", patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at all evaluations so far."""
        values: Sequence[float] = [entry[self.metric] for entry in state.log_history if self.metric in entry]
        if values and len(values) - 1 - values.index(max(values)) >= self.patience:
            control.should_training_stop = True

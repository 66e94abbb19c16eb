"""transformers' Trainer for tasks: losses of the three heads, and evaluation by asking as the task asks.

Notable: the plain language-model head keeps the model's own loss, which for gpt3 never holds all logits; weighted losses
and the other heads go through Trainer's `compute_loss_func`, so that they too are divided by what all processes and
accumulated batches hold together. Each process predicts its share of the rows.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn import functional as F
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import logging

from ..data.packing import IGNORE_INDEX
from ..tasks.encoding import PackingCollator
from ..tasks.metrics import score
from ..tasks.saved import TaskRecord, save_task
from ..tasks.scoring import Prediction, predict
from . import checkpoints
from .arguments import FinetuningArguments
from .launch import tensor_parallel_size
from .optimizer import muon_adam_for
from .recipe import save_recipe
from .run_record import save_record
from .saving import SavingTrainer
from .task_rows import EncodedExamples


logger = logging.get_logger(__name__)

PROBE_TOKENS = 8  # of each example in the pack that a model is tried with


class TaskTrainer(SavingTrainer):
    """Trainer that evaluates by predicting what a task asks for; `task.json` is saved beside the weights.

    Args:
        record: The task as the model is trained for it.
        recipe: What its checkpoints say of the run (`recipe_of`).
        validation: Rows that `evaluate` scores.
        own_dropout: Fields of the model's config that are saved in place of those of the run.
        **kwargs: As for `transformers.Trainer`, with `processing_class`.
    """

    args: FinetuningArguments
    control: Any
    optimizer: Any
    state: Any

    def __init__(
        self,
        *,
        record: TaskRecord,
        recipe: dict[str, Any],
        validation: EncodedExamples | None = None,
        own_dropout: Mapping[str, float] | None = None,
        **kwargs: Any,
    ):
        # Trainer asks for a dataset where it evaluates during training; `evaluate` takes its own.
        super().__init__(eval_dataset=None if validation is None else validation.encoded, **kwargs)
        self.record, self.recipe, self.validation = record, recipe, validation
        self.own_dropout = dict(own_dropout or {})
        # Where the weights are shared out they cannot be asked yet.
        if isinstance(self.data_collator, PackingCollator) and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            self._check_packing()
        self.nonfinite_steps = self.nonfinite_in_a_row = 0
        self._weights = self._targets = torch.empty(0)
        # Trainer's own smoothing would not shift the labels of a model that transformers does not know.
        weighted = bool(self.args.label_smoothing_factor) or "loss_weights" in self.data_collator(
            self.train_dataset[:1]
        )
        losses: dict[str, Any] = {"classification": self._class_loss, "span": self._span_loss}
        self.compute_loss_func = losses.get(record.head, self._token_loss if weighted else None)
        self._order: GroupedByLength | None = None
        self.add_callback(_EpochEvents(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Trainer's, but that rows of like length are put together by seed and epoch alone."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        args = self.args
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        self._order = GroupedByLength([len(row["input_ids"]) for row in rows], batch_size, seed)
        return self._order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's, or with `muon` that for the matrices of the blocks."""
        if self.optimizer is None and self.args.muon:
            self.optimizer = muon_adam_for(self, model)
        return super().create_optimizer(model)

    @torch.no_grad()
    def _check_packing(self) -> None:
        """Whether what the model makes of an example is the same alone, and behind any other in a pack.

        Raises:
            ValueError: It is not: the type of model does not read from positions where an example begins.
        """
        model, args = self._unwrapped(), self.args
        was_training = model.training
        words = model.config.get_text_config().vocab_size
        first, other, asked = (torch.arange(3 * PROBE_TOKENS) % words).to(args.device).view(3, 1, PROBE_TOKENS)
        positions = torch.arange(PROBE_TOKENS, device=args.device)[None]
        rounding = 0.05 if args.bf16 or args.fp16 else 1e-3

        def logits(*pack: torch.Tensor) -> torch.Tensor:
            places = torch.cat([positions] * len(pack), dim=1)
            output = model(input_ids=torch.cat(pack, dim=1), position_ids=places, use_cache=False)
            return output.logits[:, -PROBE_TOKENS:].float()

        try:
            model.eval()
            with self.compute_loss_context_manager():
                packed = logits(first, asked)
                # The former is the same product of matrices, and exact.
                differences = [(packed - found).abs().max() for found in (logits(other, asked), logits(asked))]
            leaks = differences[0] > 1e-5 * packed.abs().max() or differences[1] > rounding * packed.abs().max()
        except TypeError:  # it takes no positions
            leaks = True
        finally:
            model.train(was_training)
        if leaks:
            raise ValueError(
                f"`packing`: in a model of type {model.config.model_type} the examples of a pack would see each other: leave "
                "it out."
            )

    # Loss

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with what the loss functions below need and the model does not take set aside."""
        inputs = dict(inputs)
        if self.compute_loss_func == self._token_loss:
            self._weights, self._targets = inputs["labels"].ne(IGNORE_INDEX).float(), inputs["input_ids"]
        if "loss_weights" in inputs:
            self._weights = inputs.pop("loss_weights")
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        # Of a loss that is not finite the gradients may be.
        return loss * torch.where(loss.isfinite(), 1.0, math.nan)

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
        smoothing = self.args.label_smoothing_factor
        losses = [
            F.cross_entropy(logits.float(), positions, reduction="sum", label_smoothing=smoothing)
            for logits, positions in ends
        ]
        return (losses[0] + losses[1]) / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """As Trainer's, which would take a step whose gradients are no numbers, and hide it from the log."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.mixed_precision == "fp16":  # skipping such steps is how the scale is found
            return norm
        skipped = self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped
        if not skipped and (norm is None or math.isfinite(float(norm))):
            self.nonfinite_in_a_row = 0
            return norm
        if not self.is_deepspeed_enabled:  # which has not taken the step
            model.zero_grad(set_to_none=True)
        self.nonfinite_steps += 1
        self.nonfinite_in_a_row += 1
        step = self.state.global_step + 1
        if self.is_world_process_zero():
            logger.warning(f"Step {step}: the loss or the gradients are not finite (gradient norm {norm}). Skipped.")
        if self.nonfinite_in_a_row >= min(self.args.max_nonfinite_steps, self.state.max_steps):
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
        config = self._unwrapped().config
        of_the_run = {name: getattr(config, name) for name in self.own_dropout}
        try:
            for name, value in self.own_dropout.items():
                setattr(config, name, value)
            super()._save(output_dir, state_dict)
        finally:
            for name, value in of_the_run.items():
                setattr(config, name, value)
        if self.args.should_save:
            with self._noting_problems():
                save_task(self.record, output_dir or self.args.output_dir)

    def save_extra_state(self, folder: Path) -> None:
        """Of which run it is, and which is the best by the name it will have: Trainer has looked where this is written."""
        save_recipe(self.recipe, folder)
        save_record(self, folder)
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


class GroupedByLength(Sampler[int]):
    """Rows in an order that puts those of like length together, which is a pure function of seed and epoch.

    transformers' own draws from the generator that dropout draws from, so that the order is another one after a resume,
    and in each process.

    Args:
        lengths: Of the rows.
        batch_size: Rows of an optimizer step, of all processes.
        seed: Of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which order the next pass has."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chooser = torch.Generator().manual_seed(random.Random(f"{self.seed} {self.epoch}").getrandbits(63))
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=chooser))


class _EpochEvents(TrainerCallback):
    """Tells the order of rows which epoch begins: accelerate does not reach it in several processes after a resume."""

    def __init__(self, trainer: TaskTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first row is read, also where the epoch is resumed."""
        if self.trainer._order is not None:
            self.trainer._order.set_epoch(int(state.epoch or 0))


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

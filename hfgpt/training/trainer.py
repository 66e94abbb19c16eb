"""transformers' Trainer with what pretraining and task scoring need on top of it."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from ..data.packing import IGNORE_INDEX, HeldOutDataset
from ..model import GPT3Config
from ..planner import flops_per_token
from .arguments import PretrainingArguments
from .callbacks import StragglerCallback, TerminalCallback, ThroughputCallback, set_up_reporters
from .checkpoints import checkpoint_step, latest_complete_checkpoint, list_checkpoints, remove
from .interruption import StopAgreement
from .launch import tensor_parallel_size
from .optimizer import is_muon, muon_adam_for
from .run_record import save_record
from .saving import SavingTrainer
from .schedule import BatchSchedule, learning_rate_factor
from .steps import Position, StepLoader, StepRows
from .zero import ZeroLayout, load_resized, load_unpartitioned, saved_layout


logger = logging.get_logger(__name__)

MAX_ROLLBACKS = 3  # to one checkpoint


class PretrainingTrainer(SavingTrainer):
    """Trainer that counts in tokens: learning rate, batch size, data, log, and held-out bits per byte.

    To transformers' loop an optimizer step is one batch; `training_step` divides it into micro-batches. So a batch that
    grows never meets Trainer's own count of accumulation steps, under any kind of parallelism.

    Args:
        schedule: The batch of every step.
        position: Where to begin in the data.
        **kwargs: As for `transformers.Trainer`; `train_dataset[i]` is sample i of the run, of any length.
    """

    args: PretrainingArguments
    lr_scheduler: Any
    control: Any
    optimizer: Any

    def __init__(self, *, schedule: BatchSchedule, position: Position, **kwargs: Any):
        super().__init__(**kwargs)
        self.schedule, self.position = schedule, position
        self.keep_every_steps = self.args.keep_every_steps
        self.step_tokens = 0
        self.interrupted_by: str | None = None
        self.stop_reason: str | None = None
        self.nonfinite_in_a_row = 0
        self._rolled_back_to: int | None = None
        self._rollbacks_to_it = 0
        self._stop = StopAgreement()
        self._batches: Iterator[dict[str, torch.Tensor]] | None = None
        self._steps: Iterator[tuple[int, int]] = iter(())
        self._grad_norm: Any = None
        self._loss_sum, self._loss_steps = 0.0, 0
        config = self._unwrapped().config
        self._flops = flops_per_token(config, schedule.sequence_length) if isinstance(config, GPT3Config) else None
        self.throughput = ThroughputCallback(self, self._flops)
        self.stragglers = StragglerCallback()
        self.add_callback(self.throughput)
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(TerminalCallback(self))
        set_up_reporters(self)
        self.add_callback(_StepEvents(self))

    @property
    def tokens_seen(self) -> int:
        """Tokens of all finished steps."""
        return self.position.tokens_seen

    @property
    def train_tokens(self) -> int:
        """Tokens at which the run ends."""
        return self.args.train_tokens

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Dense-equivalent FLOPs of a step's rows here. Trainer's own goes through all weights in every step."""
        return int(inputs["input_ids"].numel() * self._flops.dense) if self._flops else 0

    # Data and schedule

    def data_parallel(self) -> tuple[int, int]:
        """This process among those that have data of their own, and how many they are."""
        shared = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        return self.args.process_index // shared, self.args.world_size // shared

    def get_tp_size(self) -> int:
        """Processes that hold one model together. Trainer's own misses DeepSpeed's where `accelerate launch` has set it."""
        return max(super().get_tp_size(), tensor_parallel_size(self.args))

    def get_train_dataloader(self) -> Any:
        """The rows of each step for this process."""
        rows = StepRows(self.train_dataset, *self.data_parallel(), offset=self.position.sequences_skipped)
        args = self.args
        return StepLoader(
            rows,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.accelerator.is_available(),
            persistent_workers=False,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),  # newer transformers
        )

    def _read_from(self, position: Position) -> None:
        """Begin to read at a position: at the start of a run, and after a rollback."""
        self.position = position
        args, groups = self.args, self.optimizer.param_groups
        now = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        for number, group in enumerate(groups):  # as the recipe says now, not as the checkpoint did
            if not is_muon(group):
                group.update({name: value for name, value in now.items() if name in group})
            if number == 0 or is_muon(group):  # Trainer's first group decays, and its second does not
                group["weight_decay"] = args.weight_decay
        self._loss_sum, self._loss_steps = position.loss_sum, position.loss_steps
        seen, remaining = position.sequences_seen, args.max_steps - self.state.global_step
        self._steps = self.schedule.steps(seen)
        self._batches = self.get_train_dataloader().batches(islice(self.schedule.steps(seen), remaining))

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The next step: this process' rows as one batch, and the number of tokens of all processes with a loss."""
        if self._batches is None:
            self._read_from(self.position)
        if self.args.rollback_after is not None and self.nonfinite_in_a_row >= self.args.rollback_after:
            self._roll_back()
        assert self._batches is not None
        batch = next(self._batches)
        _, count = next(self._steps)
        self.step_tokens = count * self.schedule.sequence_length
        self._set_learning_rate()
        self._stop.ask()
        return [batch], count * (self.schedule.sequence_length - 1)  # the first token of a sequence has no prediction

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's, or with `muon` that for the matrices of the blocks."""
        if self.optimizer is None and self.args.muon:
            self.optimizer = muon_adam_for(self, model)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The schedule of `schedule.py`, at the tokens seen by the end of each step; it has no count of its own."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda _: self._learning_rate_factor())
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _learning_rate_factor(self) -> float:
        args, tokens = self.args, self.tokens_seen + self.step_tokens
        return learning_rate_factor(tokens, args.warmup_tokens, args.decay_tokens, args.min_learning_rate_ratio)

    def _set_learning_rate(self) -> None:
        # Not left to `lr_scheduler.step()`: Trainer passes over it where a step was skipped.
        # From the arguments, not from `base_lrs`: these come from the checkpoint where the recipe has changed.
        assert self.args.learning_rate is not None  # `pretrain` takes the preset's
        rate = self.args.learning_rate * self._learning_rate_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.lr_scheduler._last_lr = [rate for _ in self.optimizer.param_groups]

    # A step

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a whole step; one whose loss or gradients are not finite is tried again, then skipped."""
        parts = [
            dict(zip(inputs, values)) for values in zip(*(v.split(self._train_batch_size) for v in inputs.values()))
        ]
        for attempt in (1, 2):
            loss = self._forward_backward(model, parts, num_items_in_batch)
            if self._is_finite(model):
                self.nonfinite_in_a_row = 0
                self._loss_sum, self._loss_steps = self._loss_sum + loss, self._loss_steps + 1
                return loss
            if self.is_deepspeed_enabled:  # which has dropped them with the step, but for sums kept in float32
                sums = getattr(self.optimizer.optimizer, "averaged_gradients", {})
                sums.update(dict.fromkeys(sums))
            else:
                model.zero_grad(set_to_none=True)
            if attempt == 1 and self.is_world_process_zero():
                logger.warning(f"Step {self.state.global_step + 1}: {self._nonfinite_words()}. Once more.")
        self.nonfinite_in_a_row += 1
        self.position.nonfinite_steps.append(self.state.global_step + 1)
        if self.is_world_process_zero():
            logger.warning(f"Step {self.state.global_step + 1}: {self._nonfinite_words()} again. Skipped.")
        return torch.zeros_like(loss)

    def _forward_backward(
        self, model: torch.nn.Module, parts: list[dict[str, Any]], num_items_in_batch: Any
    ) -> torch.Tensor:
        loss: Any = 0.0
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            self.accelerator.gradient_state._set_sync_gradients(last)
            eager = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
            at_once = last or eager or self.is_deepspeed_enabled
            with nullcontext() if at_once else self.accelerator.no_sync(model=model):
                loss = loss + super().training_step(model, part, num_items_in_batch)
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; of a loss that is not finite the gradients are not, either, in any process."""
        if self._flops:
            # Nobody reads the logits, and a small model on a processor takes its steps half again as fast without.
            inputs = {**inputs, "skip_logits": True}
        with self.stragglers.timed():
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss * torch.where(loss.isfinite(), 1.0, math.nan)

    def _is_finite(self, model: torch.nn.Module) -> bool:
        """Clip the gradients of a step, and tell whether their norm over all processes is a number."""
        if self.is_deepspeed_enabled:  # has clipped, and stepped unless they were not
            self._grad_norm = model.get_global_grad_norm()
            if self.accelerator.optimizer_step_was_skipped:
                return False
        elif self.accelerator.scaler is not None:  # fp16: skipping such steps is how the scale is found
            return True
        else:
            self._grad_norm = super()._clip_grad_norm(model) if self.args.max_grad_norm > 0 else None
            self._grad_norm = super()._get_grad_norm(model, self._grad_norm)
        return self._grad_norm is None or math.isfinite(float(self._grad_norm))

    def _nonfinite_words(self) -> str:
        return f"the loss or the gradients are not finite (gradient norm {float(self._grad_norm)})"

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        return super()._clip_grad_norm(model) if self._grad_norm is None else self._grad_norm

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(model, grad_norm) if self._grad_norm is None else self._grad_norm

    # Ends

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; SIGTERM and SIGUSR1 meanwhile save and stop it (`interrupted_by`)."""
        with self._stop.listening():
            try:
                return super().train(*args, **kwargs)
            finally:
                self._batches = None  # ends the loader's workers

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:  # resumed after the last step: what comes after training is left to do
            self.control.should_training_stop = True

    def _finish_step(self) -> None:
        """Between a step and what follows it: log, evaluation, checkpoint."""
        self.position.sequences_seen += self.step_tokens // self.schedule.sequence_length

    def _end_early(self, control: Any) -> None:
        """Stop after this step where a process was told to, or where steps have failed too often."""
        self.interrupted_by = self._stop.answer()
        if self.interrupted_by:
            control.should_evaluate = False  # there may be little time
        elif self._rollbacks_to_it >= MAX_ROLLBACKS and self.nonfinite_in_a_row >= (self.args.rollback_after or 0) > 0:
            self.stop_reason = (
                f"Still not finite after {MAX_ROLLBACKS} returns to checkpoint-{self._rolled_back_to} "
                "(`rollback_after`). Look at the learning rate, or resume from an earlier checkpoint "
                "(`resume_from_checkpoint`)."
            )
        elif self.nonfinite_in_a_row >= self.args.max_nonfinite_steps:
            self.stop_reason = (
                f"The loss or the gradients were not finite in {self.nonfinite_in_a_row} steps in a row, the last being "
                f"{self.state.global_step} (`max_nonfinite_steps`). The weights are those before. Look at the data and "
                "the learning rate; `rollback_after` returns to a checkpoint and passes over the data."
            )
        if self.interrupted_by or self.stop_reason:
            control.should_training_stop, control.should_save = True, self.args.save_strategy != SaveStrategy.NO

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """As Trainer's, which cannot resume from a checkpoint that is split in another way than this run."""
        if resume_from_checkpoint is None or not self._is_split_otherwise(resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_split_otherwise(resume_from_checkpoint)
        return prepared

    def _is_split_otherwise(self, checkpoint: str | Path) -> bool:
        """Whether ZeRO has split a checkpoint over other processes than these, or it has and this run does not."""
        if self.get_tp_size() > 1:
            return False  # DeepSpeed resumes it as it was, or says that it cannot
        layout = saved_layout(checkpoint)
        if not self.is_deepspeed_enabled:
            return layout is not None
        zero = self.accelerator.state.deepspeed_plugin.zero_stage
        return layout != ZeroLayout(self.args.world_size, zero)

    def _load_split_otherwise(self, checkpoint: str | Path) -> None:
        if self.is_deepspeed_enabled:
            load_resized(self.model_wrapped, checkpoint)
        elif self.is_fsdp_enabled:
            raise ValueError(
                f"{checkpoint} is of a run with DeepSpeed, from which FSDP cannot resume: go on with DeepSpeed."
            )
        else:
            load_unpartitioned(self._unwrapped(), self.optimizer.optimizer, checkpoint)

    def _restore(self, folder: Path) -> None:
        """Weights, optimizer and random state of a checkpoint, into the run as it is."""
        model, path = self.model_wrapped, str(folder)
        if self._is_split_otherwise(folder):
            self._load_split_otherwise(folder)
        elif self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(model, path)
        else:
            self._load_from_checkpoint(path, model if self.is_fsdp_enabled else None)
            self._load_optimizer_and_scheduler(path)
        self._load_rng_state(path)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        losses = torch.as_tensor(self._loss_sum, device=self.args.device)
        self.position.loss_sum = self.accelerator.reduce(losses, "mean").item()
        self.position.loss_steps = self._loss_steps
        super()._save_checkpoint(model, trial)

    def save_extra_state(self, folder: Path) -> None:
        """Where in the data the checkpoint is, and what the run was until then."""
        self.position.save(folder)
        save_record(self, folder)

    def _roll_back(self) -> None:
        """Return to the newest checkpoint before the failing steps, with the data going on where it is."""
        last_good = self.state.global_step - self.nonfinite_in_a_row
        folder = latest_complete_checkpoint(self.args.output_dir, up_to_step=last_good)
        position = None if folder is None else Position.load(folder)
        self.nonfinite_in_a_row = 0
        if folder is None or position is None:
            if self.is_world_process_zero():
                logger.warning("No checkpoint to roll back to (`save_steps`): going on.")
            return
        self._restore(folder)
        restored = checkpoint_step(folder)
        assert restored is not None
        self._rollbacks_to_it = self._rollbacks_to_it + 1 if restored == self._rolled_back_to else 1
        self._rolled_back_to = restored
        if self.args.should_save:  # what was saved since is of a course that the run leaves
            for newer in list_checkpoints(self.args.output_dir):
                if (checkpoint_step(newer) or 0) > restored:
                    remove(newer)
        self.accelerator.wait_for_everyone()
        here = self.position
        passed = here.sequences_seen - position.sequences_seen
        if self.is_world_process_zero():
            logger.warning(
                f"Step {self.state.global_step}: back to {folder.name}; {passed} sequences since are passed over."
            )
        position.sequences_skipped = here.sequences_skipped + passed
        position.nonfinite_steps, position.rollbacks = here.nonfinite_steps, here.rollbacks + 1
        self.state.global_step = restored
        self.state.log_history = [entry for entry in self.state.log_history if entry["step"] <= restored]
        self._globalstep_last_logged = restored
        self._read_from(position)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over every token of the held-out split, the same on any number of processes.

        Trainer's own takes the mean of batches' means, in which a short last sequence weighs as much as a long one.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        args, start = self.args, time.perf_counter()
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        model = self.model_wrapped if sharded else self.model
        was_training = model.training
        model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=args.device)  # nats, tokens
        batch_size, (rank, world) = args.eval_batch_size, self.data_parallel()
        for turn in tqdm(
            range(0, len(dataset), batch_size * world),
            desc="held out",
            disable=args.disable_tqdm or not self.is_local_process_zero(),
            leave=False,
        ):
            first = turn + rank * batch_size
            # Sharded weights are gathered by all processes together, so each runs every turn, if on nothing.
            rows = [dataset[index if index < len(dataset) else 0] for index in range(first, first + batch_size)]
            inputs = self._prepare_inputs({key: torch.stack([row[key] for row in rows]) for key in rows[0]})
            inputs["labels"][max(len(dataset) - first, 0) :] = IGNORE_INDEX
            tokens = inputs["labels"][:, 1:].ne(IGNORE_INDEX).sum()
            with self.compute_loss_context_manager():
                loss = model(**inputs, use_cache=False, num_items_in_batch=1, skip_logits=True).loss
            totals += torch.stack([loss.double(), tokens.double()])
        model.train(was_training)
        nats, tokens = self.accelerator.reduce(totals).tolist()
        seconds = time.perf_counter() - start
        metrics = {
            f"{metric_key_prefix}_loss": nats / tokens if tokens else float("nan"),
            f"{metric_key_prefix}_runtime": round(seconds, 4),
            f"{metric_key_prefix}_samples_per_second": round(len(dataset) / seconds, 3),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens seen, tokens per second, perplexity and bits per byte to what is logged."""
        if "loss" in logs:
            # Trainer's mean would take a skipped step for a loss of 0.
            mean = torch.as_tensor(self._loss_sum / max(self._loss_steps, 1), device=self.args.device)
            logs["loss"] = self.accelerator.reduce(mean, "mean").item() if self._loss_steps else float("nan")
            self._loss_sum, self._loss_steps = 0.0, 0
            logs.update(self.throughput.metrics())
            logs.update(self.stragglers.metrics())
            if self.position.nonfinite_steps:
                logs["nonfinite_steps"] = len(self.position.nonfinite_steps)
        if "eval_loss" in logs:
            logs["tokens"] = self.tokens_seen
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
            if isinstance(self.eval_dataset, HeldOutDataset):
                logs["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.eval_dataset.bytes_per_token
        super().log(logs, start_time)


class _StepEvents(TrainerCallback):
    """Tells the trainer of the two moments that a subclass cannot see."""

    def __init__(self, trainer: PretrainingTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before all other callbacks hear of the step's end."""
        self.trainer._finish_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """After Trainer's own decision to log, evaluate and save."""
        state.epoch = state.global_step / state.max_steps
        self.trainer._end_early(control)
        return control

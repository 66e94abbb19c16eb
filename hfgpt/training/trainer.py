"""transformers' Trainer with what pretraining and task scoring need on top of it."""

import math
import resource
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import Trainer

from ..data.packing import IGNORE_INDEX, HeldOutDataset
from ..tasks.base import ChoiceTask, choice_scores, classification_metrics
from .arguments import PretrainingArguments
from .callbacks import ThroughputCallback
from .schedule import learning_rate_factor


def peak_memory_bytes() -> int:
    """Most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PretrainingTrainer(Trainer):
    """Trainer that counts in tokens: the learning rate, the log, and held-out bits per byte.

    Args:
        tokens_per_step: Tokens of one optimizer step over all processes and accumulation steps.
        **kwargs: As for `transformers.Trainer`.
    """

    args: PretrainingArguments
    lr_scheduler: Any
    control: Any

    def __init__(self, *, tokens_per_step: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.tokens_per_step = tokens_per_step
        self.throughput = ThroughputCallback(tokens_per_step)
        self.add_callback(self.throughput)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The schedule of `schedule.py`, evaluated at the tokens seen by the end of each step."""
        if self.lr_scheduler is None:
            args = self.args

            def factor(step: int) -> float:
                tokens = (step + 1) * self.tokens_per_step
                return learning_rate_factor(
                    tokens, args.warmup_tokens, args.decay_tokens, args.min_learning_rate_ratio
                )

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

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
        batch_size = args.eval_batch_size
        for turn in tqdm(
            range(0, len(dataset), batch_size * args.world_size),
            desc="held out",
            disable=args.disable_tqdm or not self.is_local_process_zero(),
            leave=False,
        ):
            first = turn + args.process_index * batch_size
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
            logs["tokens"] = self.state.global_step * self.tokens_per_step
            speed = self.throughput.since_last_call()
            if speed is not None:
                logs["tokens_per_second"] = round(speed)
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
            if isinstance(self.eval_dataset, HeldOutDataset):
                logs["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.eval_dataset.bytes_per_token
        super().log(logs, start_time)


class ChoiceTrainer(Trainer):
    """Trainer that evaluates by choosing the likeliest completion: accuracy and macro-F1.

    Args:
        task: The task.
        test_prompts: Token ids of each test prompt.
        test_labels: Class index of each.
        **kwargs: As for `transformers.Trainer`, with `processing_class`.
    """

    control: Any

    def __init__(self, *, task: ChoiceTask, test_prompts: list[list[int]], test_labels: list[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.task, self.test_prompts, self.test_labels = task, test_prompts, test_labels

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Score the test rows, each process its share."""
        rank, world = self.args.process_index, self.args.world_size
        tokenizer: Any = self.processing_class
        autocast = torch.autocast(self.args.device.type, torch.bfloat16) if self.args.bf16 else nullcontext()
        scores = choice_scores(
            self.accelerator.unwrap_model(self.model),
            self.test_prompts[rank::world],
            self.task.choice_ids(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            batch_size=self.args.per_device_eval_batch_size,
            autocast=autocast,
            progress=not self.args.disable_tqdm and self.is_world_process_zero(),
        )
        shares = gather_object([(rank, scores.argmax(-1).tolist())])
        predicted = [0] * len(self.test_prompts)
        for owner, share in shares:
            predicted[owner::world] = share
        metrics = classification_metrics(predicted, self.test_labels, len(self.task.labels))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

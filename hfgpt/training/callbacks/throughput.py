"""Speed: tokens per second, model-FLOPs utilisation, time left."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...planner import FlopsPerToken, peak_flops
from ..launch import tensor_parallel_size
from .common import AddsToLogs, logger, training_clock


@dataclass
class Progress:
    """How far a run is. The trainer writes it, callbacks read it.

    Attributes:
        tokens_seen: Tokens of all finished steps, those before a resume too.
        step_tokens: Tokens of the current (or last) optimizer step, over all processes and micro-batches.
        train_tokens: Tokens at which the run ends.
    """

    tokens_seen: int = 0
    step_tokens: int = 0
    train_tokens: int = 0


class _TokenCounter:
    """Counts the tokens that go through a model's forward in training, without asking the device.

    Attributes:
        tokens: Of this process, padding too: it is computed like the rest; of an encoder and its decoder both.
        keys: The same times the length of their sequence, for the FLOPs of attention.
    """

    def __init__(self) -> None:
        self.tokens = self.keys = 0
        self._hook: Any = None

    def attach(self, model: torch.nn.Module) -> None:
        self.detach()
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Not generation, evaluation or a reference model.
        if module.training and torch.is_grad_enabled():
            inputs = next(
                (kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), None
            )
            inputs = args[0] if inputs is None and args else inputs
            written = None  # by a decoder beside an encoder, which makes what it reads from the labels
            if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
                names = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
                written = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
            for tensor in (inputs, written):
                if isinstance(tensor, torch.Tensor) and tensor.dim() >= 2:
                    rows, length = tensor.shape[:2]
                    self.tokens += rows * length
                    self.keys += rows * length * length


def training_flops_per_token(model: Any, sequence_length: float) -> FlopsPerToken:
    """FLOPs of training on one token, of any of transformers' models, by `planner.FlopsPerToken`'s three conventions.

    A weight that trains takes 6 operations, a frozen one 4 (there is no gradient of it), an expert its share by the
    experts that a token goes to; attention takes 12 times heads, their size, and the keys that a query meets, in each layer.

    Args:
        model: With its config, which says how wide attention is; without these words only the weights count.
        sequence_length: Tokens of a sequence, on average.

    Raises:
        ValueError: The model has no config, does not say which weights are its embeddings, or has an encoder and a decoder,
            of which each sees only a part of the tokens.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None:
        raise ValueError(f"{name} has no `config` to tell its FLOPs by.")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} has an encoder and a decoder: its FLOPs of a token are not known.")
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        raise ValueError(f"{name} does not say which weights are its embeddings (`get_input_embeddings`).") from None
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    lookup = getattr(embeddings, "weight", None)
    tied = output is not None and getattr(output, "weight", None) is lookup
    experts = next(
        (n for name in ("num_local_experts", "num_experts", "n_routed_experts") if (n := getattr(config, name, None))),
        0,
    )
    share = (getattr(config, "num_experts_per_tok", None) or experts) / experts if experts else 1.0
    weights = looked_up = 0.0
    for path, parameter in model.named_parameters():
        size = getattr(parameter, "ds_numel", parameter.numel())
        if hasattr(parameter, "quant_state"):  # two weights in a byte
            size *= 2 * parameter.element_size()
        flops = size * (6 if parameter.requires_grad else 4) * (share if ".experts." in path else 1.0)
        weights += flops
        if parameter is lookup and not tied:
            looked_up = flops
    heads, layers = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
    if not (isinstance(heads, int) and isinstance(layers, int)):
        return FlopsPerToken(paper=weights, dense=weights - looked_up, banded=weights - looked_up)
    width = heads * (getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads)
    causal = model.can_generate() if hasattr(model, "can_generate") else True
    keys = sum(_keys_met(sequence_length, window, causal) for window in _windows(config, layers))
    return FlopsPerToken(
        paper=weights,
        dense=weights - looked_up + 12.0 * layers * width * sequence_length,
        banded=weights - looked_up + 12.0 * width * keys,
    )


def _windows(config: Any, layers: int) -> list[int | None]:
    """The keys that a query sees at most, in each layer; None: all."""
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if kinds is None:
        return [window if window and getattr(config, "use_sliding_window", True) else None] * layers
    return [window if kind in ("sliding_attention", "local") else None for kind in kinds]


def _keys_met(length: float, window: int | None, causal: bool) -> float:
    """Keys that a query meets on average."""
    if not causal:
        return min(length, 2 * window) if window else length
    seen = length if window is None else min(length, window)
    return (seen * (seen + 1) / 2 + (length - seen) * seen) / length if length else 0.0


def _is_compiled(args: TrainingArguments, model: Any) -> bool:
    compiled = getattr(args, "torch_compile", False) or hasattr(model, "_orig_mod")
    return bool(compiled or getattr(model, "_compiled_call_impl", None) is not None)


class ThroughputCallback(AddsToLogs):
    """Tokens per second of training alone (data, forward, backward, optimizer), model-FLOPs utilisation and the ETA.

    Evaluation, saving, and the samples and pictures of the callbacks here are left out of the speed, but not of the ETA. The
    numbers are added to Trainer's log lines; `insert_in` puts it first, so that they are printed and reported too.

    Without arguments it works with any Trainer: tokens are those of `include_num_input_tokens_seen` where that is set, else
    it counts what goes through the model, padding too, and adds up the processes at log lines. A compiled model cannot be
    counted so: there set `include_num_input_tokens_seen`, or give the tokens of a step.

    Args:
        progress: Where the run is: anything with the attributes of `Progress`, such as the trainer itself; or the tokens
            of every optimizer step, over all processes and accumulation steps, where that never changes. Default: it
            counts them.
        flops_per_token: `planner.flops_per_token(config, sequence_length)`. Default: `training_flops_per_token` of the
            model at the length of its batches, where tokens are counted; else, and where that does not know (of an encoder
            with a decoder it does not), there is no utilisation.
        peak_flops_per_device: Peak of one device, in FLOP/s. Default: what the planner knows of this GPU in bf16; without
            either there is no utilisation, but FLOP/s.

    Raises:
        ValueError: `progress` is a number below 1.

    Example:
        ```python
        from hfgpt.training.callbacks import ThroughputCallback
        ThroughputCallback().insert_in(trainer)
        trainer.train()
        ```
    """

    marker = "tokens"

    def __init__(
        self,
        progress: Progress | int | None = None,
        flops_per_token: FlopsPerToken | None = None,
        peak_flops_per_device: float | None = None,
    ):
        if isinstance(progress, int) and progress < 1:
            raise ValueError(
                f"`progress` as tokens of a step must be at least 1, got {progress}; leave it out to count."
            )
        self.constant = progress if isinstance(progress, int) else None
        own = progress is None or isinstance(progress, int)
        self.progress: Any = Progress(step_tokens=self.constant or 0) if own else progress
        self.flops_per_token = flops_per_token
        self.peak_flops_per_device = peak_flops_per_device
        self.devices = 1
        self._counter = _TokenCounter() if progress is None else None
        self._reset()

    def _reset(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._window = (0.0, 0)
        self._since: float | None = None  # None where the clock stands still
        self._history: deque[tuple[float, int]] = deque(maxlen=20)  # (seconds, done) of log lines, for the ETA
        self._counted, self._steps = (0, 0), 0
        self._args: Any = None
        self._state: Any = None
        self._model: Any = None
        self._estimate: FlopsPerToken | None = None
        self._told, self._estimable = False, True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start anew."""
        self._reset()
        self.devices = args.world_size
        self._count(state)
        if self.peak_flops_per_device is None and args.device.type == "cuda":
            self.peak_flops_per_device = peak_flops(torch.cuda.get_device_name(args.device))
        if self._counter is not None:
            self._args, self._state, self._model = args, state, kwargs.get("model")
            self._counter.detach()
            self._counter = _TokenCounter()
            if self._model is not None and not _is_compiled(args, self._model):
                self._counter.attach(self._model)
            before = (entry["tokens"] for entry in reversed(state.log_history) if "tokens" in entry)
            self.progress.tokens_seen = state.num_input_tokens_seen if self._trainer_counts() else next(before, 0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model as it was."""
        if self._counter is not None:
            self._counter.detach()

    def _trainer_counts(self) -> bool:
        return getattr(self._args, "include_num_input_tokens_seen", "no") not in ("no", False, None)

    def _collect(self) -> None:
        """Count the tokens since the last line, of all processes; these ask together."""
        assert self._counter is not None
        new = [self._counter.tokens - self._counted[0], self._counter.keys - self._counted[1]]
        self._counted = (self._counter.tokens, self._counter.keys)
        if PartialState().num_processes > 1:
            new = reduce(torch.tensor(new, device=PartialState().device), "sum").tolist()
            new = [number // tensor_parallel_size(self._args) for number in new]
        tokens, keys = new
        if tokens and self.flops_per_token is None and self._model is not None and self._estimable:
            self._estimate_flops(keys / tokens)
        if self._trainer_counts():
            tokens = self._state.num_input_tokens_seen - self.progress.tokens_seen
        if not tokens and not self._told:
            self._told = True
            if self._state.is_world_process_zero:
                logger.warning(
                    "ThroughputCallback could not count tokens: the model is compiled, or takes no `input_ids`. Give it the "
                    "tokens of a step, ThroughputCallback(tokens_per_step), or set `include_num_input_tokens_seen`."
                )
        self.tokens += tokens
        self.progress.tokens_seen += tokens
        self.progress.step_tokens = round(tokens / self._steps) if self._steps else 0
        self._steps = 0

    def _estimate_flops(self, length: float) -> None:
        try:
            self._estimate = training_flops_per_token(self._model, length)
        except Exception as error:  # a model of any make
            self._estimable = False
            if self._state.is_world_process_zero:
                logger.warning(
                    f"No utilisation is logged: {str(error) or type(error).__name__} Give ThroughputCallback "
                    "`flops_per_token`, if you know them."
                )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the clock go on where it stood still."""
        if self._since is None:
            self._since = self._now()
            if not self._history:
                self._history.append((time.perf_counter(), self._done_and_left()[0]))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step."""
        self._tick()
        self._steps += 1
        if self._counter is None:
            self.tokens += self.progress.step_tokens
        self._count(state)

    def _leave_out(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The clock stands still until the next step, whatever other callbacks do in between.
        self._since = None

    on_evaluate = _leave_out
    on_save = _leave_out

    def _count(self, state: TrainerState) -> None:
        if self.constant is not None:
            self.progress.tokens_seen = state.global_step * self.constant
            self.progress.train_tokens = state.max_steps * self.constant

    def _now(self) -> float:
        return time.perf_counter() - training_clock.seconds

    def _tick(self) -> None:
        if self._since is not None:
            now = self._now()
            self.seconds += now - self._since
            self._since = now

    def since_last_call(self) -> float | None:
        """Tokens per second since this was last asked; None without a step in between."""
        # Trainer has just read the loss, so that what the device still had to do is in the time.
        self._tick()
        seconds, tokens = self.seconds - self._window[0], self.tokens - self._window[1]
        self._window = (self.seconds, self.tokens)
        return tokens / seconds if tokens and seconds > 0 else None

    def overall(self) -> float | None:
        """Tokens per second since training began or was resumed; None before the first step."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    def rates(self, tokens_per_second: float | None) -> dict[str, float]:
        """A speed in every unit.

        Returns:
            `tokens_per_second` and `model_tflops_per_second` (10^12 FLOP/s, dense-equivalent), both over all devices;
            where the peak is known also `mfu`, the share of it as if all attention were dense, as others
            report it, and `mfu_banded`, with the FLOPs that banded layers need.
        """
        if tokens_per_second is None:
            return {}
        rates = {"tokens_per_second": round(tokens_per_second, 1)}
        flops = self.flops_per_token or self._estimate
        if flops is not None:
            rates["model_tflops_per_second"] = tokens_per_second * flops.dense / 1e12
            if self.peak_flops_per_device is not None:
                peak = self.peak_flops_per_device * self.devices
                rates["mfu"] = tokens_per_second * flops.dense / peak
                rates["mfu_banded"] = tokens_per_second * flops.banded / peak
        return rates

    def eta_seconds(self) -> float | None:
        """Seconds to the end at the pace of the last log lines, evaluation and saving included."""
        now, (done, left) = time.perf_counter(), self._done_and_left()
        eta = None
        if self._history and done > self._history[0][1]:
            eta = left * (now - self._history[0][0]) / (done - self._history[0][1])
        self._history.append((now, done))
        return eta

    def _done_and_left(self) -> tuple[int, int]:
        """In tokens, or in steps where it is not known at how many tokens the run ends."""
        if self._counter is not None:
            return self._state.global_step, self._state.max_steps - self._state.global_step
        seen = self.progress.tokens_seen
        return seen, max(self.progress.train_tokens - seen, 0)

    def metrics(self) -> dict[str, float]:
        """What a log line of training gets; asked once a line.

        Returns:
            `tokens` (seen), `batch_tokens` (of the last step, or where they are counted the mean of the steps since the
            last line), `rates` since the last line, `eta_seconds`.
        """
        if self._counter is not None:
            self._collect()
        metrics: dict[str, float] = {}
        if self._counter is None or self.progress.tokens_seen:
            metrics = {"tokens": self.progress.tokens_seen, "batch_tokens": self.progress.step_tokens}
        metrics.update(self.rates(self.since_last_call()))
        eta = self.eta_seconds()
        if eta is not None:
            metrics["eta_seconds"] = round(eta)
        return metrics

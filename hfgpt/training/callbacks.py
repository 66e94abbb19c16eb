"""See a run: speed, samples, the terminal, the loss curve, TensorBoard and trackio. Usable with any Trainer.

Notable: nothing here waits for the device or talks to other processes but where a log line is written; what a batch ramp
changes from step to step is counted as it comes; and a full disk below a picture, a sample or a reporter is a warning.
"""

import json
import math
import os
import resource
import socket
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from tqdm.auto import tqdm
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback, is_fsdp_managed_module
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import logging

from ..data.documents import written_whole


if TYPE_CHECKING:
    from ..planner import FlopsPerToken

logger = logging.get_logger(__name__)

SAMPLES_FILE = "samples.jsonl"
TENSORBOARD_FOLDER = "runs"
STRAGGLER_THRESHOLD = 1.2
NOTICEABLE_SECONDS = 0.01  # of a micro-batch; below, a process is late by chance
REPORTER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",)}


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


def peak_host_memory_bytes() -> int:
    """Most memory of the host that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_memory_bytes() -> int:
    """Most memory of its GPU that this process's tensors have held; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


class _AddsToLogs(TrainerCallback):
    """Adds `metrics()` to the lines of training, unless the trainer has done so.

    A trainer of one's own does it in its `log`, before the line goes anywhere. With another Trainer it is done here:
    for its history and the callbacks after this one, while reporters have been called before.
    """

    marker: str

    def metrics(self) -> dict[str, float]:
        raise NotImplementedError

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add them."""
        if logs is not None and "loss" in logs and self.marker not in logs:
            added = self.metrics()
            logs.update(added)
            if state.log_history:
                state.log_history[-1].update(added)


class ThroughputCallback(_AddsToLogs):
    """Tokens per second of training alone (data, forward, backward, optimizer), model-FLOPs utilisation and the ETA.

    Evaluation and saving are left out of the speed, but not of the ETA.

    Args:
        progress: Where the run is: anything with the attributes of `Progress`, such as the trainer itself; or the tokens
            of every optimizer step, over all processes and accumulation steps, where that never changes.
        flops_per_token: `planner.flops_per_token(config, sequence_length)`; without it there is no utilisation.
        peak_flops_per_device: Peak of one device, in FLOP/s. Default: what the planner knows of this GPU in bf16.
    """

    marker = "tokens"

    def __init__(
        self,
        progress: Progress | int,
        flops_per_token: "FlopsPerToken | None" = None,
        peak_flops_per_device: float | None = None,
    ):
        self.constant = progress if isinstance(progress, int) else None
        self.progress = Progress(step_tokens=progress) if isinstance(progress, int) else progress
        self.flops_per_token = flops_per_token
        self.peak_flops_per_device = peak_flops_per_device
        self.devices = 1
        self._reset()

    def _reset(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._window = (0.0, 0)
        self._since: float | None = None  # None where the clock stands still
        self._history: deque[tuple[float, int]] = deque(maxlen=20)  # (seconds, tokens seen) of log lines, for the ETA

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start anew."""
        self._reset()
        self.devices = args.world_size
        self._count(state)
        if self.flops_per_token is not None and self.peak_flops_per_device is None and args.device.type == "cuda":
            from ..planner import peak_flops

            self.peak_flops_per_device = peak_flops(torch.cuda.get_device_name(args.device))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the clock go on where it stood still."""
        if self._since is None:
            self._since = time.perf_counter()
            if not self._history:
                self._history.append((self._since, self.progress.tokens_seen))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step."""
        self._tick()
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

    def _tick(self) -> None:
        if self._since is not None:
            now = time.perf_counter()
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
        if self.flops_per_token is not None:
            rates["model_tflops_per_second"] = tokens_per_second * self.flops_per_token.dense / 1e12
            if self.peak_flops_per_device is not None:
                peak = self.peak_flops_per_device * self.devices
                rates["mfu"] = tokens_per_second * self.flops_per_token.dense / peak
                rates["mfu_banded"] = tokens_per_second * self.flops_per_token.banded / peak
        return rates

    def eta_seconds(self) -> float | None:
        """Seconds to the end at the pace of the last log lines, evaluation and saving included."""
        now, seen = time.perf_counter(), self.progress.tokens_seen
        left = max(self.progress.train_tokens - seen, 0)
        eta = None
        if self._history and seen > self._history[0][1]:
            eta = left * (now - self._history[0][0]) / (seen - self._history[0][1])
        self._history.append((now, seen))
        return eta

    def metrics(self) -> dict[str, float]:
        """What a log line of training gets; asked once a line.

        Returns:
            `tokens` (seen), `batch_tokens`, `rates` since the last line, `eta_seconds`.
        """
        metrics: dict[str, float] = {"tokens": self.progress.tokens_seen, "batch_tokens": self.progress.step_tokens}
        metrics.update(self.rates(self.since_last_call()))
        eta = self.eta_seconds()
        if eta is not None:
            metrics["eta_seconds"] = round(eta)
        return metrics


class StragglerCallback(_AddsToLogs):
    """What differs between processes: the time each needs for its own work, and memory; gathered at log lines only.

    The trainer wraps what a process does alone, such as a micro-batch's forward, in `timed()`. Under DDP and ZeRO-1
    and 2 a forward waits for nobody, so its time tells a slow device, or a slow host where that keeps the device
    waiting. Under ZeRO-3 and FSDP each layer waits for the slowest process, so all seem equally slow: only what is
    timed outside of forward, such as fetching data, is told apart there.
    """

    marker = "peak_host_memory_bytes"

    def __init__(self, threshold: float = STRAGGLER_THRESHOLD):
        self.threshold = threshold
        self._seconds, self._times = 0.0, 0
        self._events: list[tuple[Any, Any]] = []
        self._hosts: list[str] = []
        self._slowest: int | None = None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the body on the host's clock, or on a CUDA device's, which nothing waits for."""
        if torch.cuda.is_available():
            if len(self._events) >= 1000:  # so many tell enough, however seldom a line is written
                yield
                return
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            since = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - since
            self._times += 1

    def _mean_seconds(self) -> float:
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._times += len(self._events)
        mean = self._seconds / self._times if self._times else math.nan
        self._seconds, self._times, self._events = 0.0, 0, []
        return mean

    def metrics(self) -> dict[str, float]:
        """What a log line of training gets; all processes must ask together.

        Returns:
            `peak_host_memory_bytes` and, of GPUs, `peak_device_memory_bytes`, the most that any process has held; of
            several processes that used `timed()` also `straggler_ratio`: the slowest one's mean time over the median.
        """
        own = [self._mean_seconds(), float(peak_host_memory_bytes()), float(peak_device_memory_bytes())]
        rows = [own]
        if PartialState().num_processes > 1:
            rows = gather(torch.tensor([own], dtype=torch.float64, device=PartialState().device)).tolist()
        seconds, host, device = zip(*rows)
        metrics: dict[str, float] = {"peak_host_memory_bytes": int(max(host))}
        if max(device) > 0:
            metrics["peak_device_memory_bytes"] = int(max(device))
        if len(rows) > 1 and all(value > 0 for value in seconds):
            slowest = max(range(len(seconds)), key=lambda rank: seconds[rank])
            metrics["straggler_ratio"] = round(seconds[slowest] / statistics.median(seconds), 3)
            if seconds[slowest] - statistics.median(seconds) > NOTICEABLE_SECONDS:
                self._warn(slowest, metrics["straggler_ratio"])
        return metrics

    def _warn(self, slowest: int, ratio: float) -> None:
        if ratio <= self.threshold:
            self._slowest = None
        elif slowest != self._slowest:  # not again with every line
            self._slowest = slowest
            self._hosts = self._hosts or gather_object([socket.gethostname()])
            if PartialState().is_main_process:
                logger.warning(
                    f"Process {slowest} on {self._hosts[slowest]} needs {ratio:.2f} times as long as the median for its "
                    "own part of a step, and all wait for it: look at that machine."
                )


class SampleCallback(TrainerCallback):
    """Continues prompts at every evaluation: printed, appended to `output_dir/samples.jsonl`, and logged as text.

    Training goes on as if it had not been: greedy by default, and whatever random numbers sampling draws are its own.
    Under ZeRO-3 all processes take part (and gather the weights once a token: keep it short); under FSDP and tensor
    parallelism there are no samples, with a warning.

    Args:
        tokenizer: The model's.
        prompts: Texts to continue, in any language; an empty one starts a document.
        max_new_tokens: Tokens of a continuation at most.
        log: Called with `{"samples": text}`, such as `trainer.log`, for TensorBoard and trackio.
        **options: For `model.generate`: `do_sample`, `top_p`, `temperature`, ...
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: list[str],
        max_new_tokens: int = 64,
        log: Callable[[dict[str, Any]], None] | None = None,
        **options: Any,
    ):
        self.tokenizer, self.prompts, self.max_new_tokens, self.log = tokenizer, prompts, max_new_tokens, log
        self.options = {"do_sample": False, **options}
        self._last_step: int | None = None
        self._warned = False

    def _ids(self, prompt: str) -> torch.Tensor:
        return self.tokenizer(prompt or self.tokenizer.eos_token, return_tensors="pt")["input_ids"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the prompts.

        Raises:
            ValueError: A prompt leaves no position for a continuation.
        """
        self._last_step = None
        limit = getattr(kwargs["model"].config, "max_position_embeddings", None)
        for prompt in self.prompts:
            length = self._ids(prompt).shape[1]
            if limit is not None and length >= limit:
                raise ValueError(
                    f"The sample prompt {prompt[:40]!r} has {length} tokens, and the model {limit} positions: shorten it."
                )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the samples, once a step."""
        if state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        model = kwargs["model"]
        by_all = any(hasattr(parameter, "ds_id") for parameter in model.parameters())  # ZeRO-3
        if not by_all and _is_sharded(model):
            if state.is_world_process_zero and not self._warned:
                self._warned = True
                logger.warning("No samples: this model's weights are spread over processes in a way they cannot use.")
            return
        if not (by_all or state.is_world_process_zero):
            return
        texts = self._continue_all(model)
        if not state.is_world_process_zero:
            return
        tokens = next((entry["tokens"] for entry in reversed(state.log_history) if "tokens" in entry), None)
        rows = [
            {"step": state.global_step, "tokens": tokens, "prompt": prompt, "continuation": text}
            for prompt, text in zip(self.prompts, texts)
        ]
        for row in rows:
            write_line(f"  sample  {row['prompt']}|{row['continuation']}".replace("\n", "\n          "))
        with _disk_may_be_full("samples"):
            file = Path(args.output_dir) / SAMPLES_FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if self.log is not None:
            self.log({"samples": "\n\n".join(f"**{row['prompt']}**{row['continuation']}" for row in rows)})

    def _continue_all(self, model: Any) -> list[str]:
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        device = next(model.parameters()).device
        limit = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
        was_training = model.training
        model.eval()
        texts = []
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(0)
                for prompt in self.prompts:
                    ids = self._ids(prompt).to(device)
                    output = model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=min(self.max_new_tokens, limit - ids.shape[1]),
                        pad_token_id=pad,
                        **self.options,
                    )
                    texts.append(self.tokenizer.decode(output[0, ids.shape[1] :]))
        finally:
            model.train(was_training)
        return texts


def _is_sharded(model: Any) -> bool:
    """Whether a process holds only parts of the parameters, or must not use them alone."""
    from torch.distributed.tensor import DTensor

    return is_fsdp_managed_module(model) or any(isinstance(parameter, DTensor) for parameter in model.parameters())


def write_line(text: str) -> None:
    """Print above progress bars, at once."""
    tqdm.write(text)
    sys.stdout.flush()


@contextmanager
def _disk_may_be_full(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        logger.warning(f"Could not write the {what}, training goes on: {error}")


def short_number(number: float) -> str:
    """300000000000 as 300B, 31457280 as 31.5M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def short_duration(seconds: float) -> str:
    """Two units at most: 3d 4h, 5m 20s."""
    seconds = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


class TerminalCallback(ProgressCallback):
    """One line for people at each log step, in place of Trainer's dictionaries, above a bar unless `disable_tqdm`.

    Every number stays in `trainer_state.json`. Put it where Trainer's own was:

        trainer.remove_callback(PrinterCallback if args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        trainer.add_callback(TerminalCallback())

    with `DEFAULT_PROGRESS_CALLBACK` from `transformers.trainer`, which is another one in a notebook.

    Args:
        progress: Where the run is, for the tokens at which it ends.
    """

    def __init__(self, progress: Progress | None = None):
        super().__init__()
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar of an evaluation."""
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the line."""
        if state.is_world_process_zero and logs:
            line = self.line(state, logs)
            if line:
                write_line(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        """The line of one set of logs, such as `step 120/4,800  tokens 31.5M/300B  loss 5.432 ...`; may be empty."""
        logs = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
        goal = f"/{short_number(self.progress.train_tokens)}" if self.progress and self.progress.train_tokens else ""
        words = [f"step {state.global_step:,}/{state.max_steps:,}"]
        if "tokens" in logs:
            words.append(f"tokens {short_number(logs['tokens'])}{goal}")
        if "train_runtime" in logs:
            words.append(f"finished in {short_duration(logs['train_runtime'])}")
        skipped = logs.get("nonfinite_steps")
        if skipped:
            words.append(f"SKIPPED SO FAR: {skipped:,} step{'s' if skipped > 1 else ''} without finite gradients")
        shown = [word for key, value in logs.items() if key in _FORMATS and (word := _FORMATS[key](value)) is not None]
        # What another trainer or a task adds.
        shown += [
            f"{key.removeprefix('eval_').replace('_', ' ')} {value:.4g}"
            for key, value in logs.items()
            if key not in _FORMATS and key not in _NOT_SHOWN
        ]
        if not shown:
            return "  ".join(words) if len(words) > 2 else ""
        if any(key.startswith("eval_") for key in logs):
            shown[0] = f"held out: {shown[0]}"
            if "eval_runtime" in logs:
                shown.append(f"({short_duration(logs['eval_runtime'])})")
        return "  ".join(words + shown)


def _loss(value: float) -> str:
    return f"loss {value:.4f}" if math.isfinite(value) else "LOSS NOT FINITE"


def _gradient(value: float) -> str:
    return f"grad {value:.2f}" if math.isfinite(value) else "GRADIENTS NOT FINITE"


_FORMATS: dict[str, Callable[[Any], str | None]] = {
    "loss": _loss,
    "eval_loss": _loss,
    "train_loss": lambda value: f"mean loss {value:.4f}",
    "grad_norm": _gradient,
    "learning_rate": lambda value: f"lr {value:.2e}",
    "batch_tokens": lambda value: f"batch {short_number(value)}",
    "tokens_per_second": lambda value: f"{short_number(value)} tok/s",
    "mfu": lambda value: f"MFU {value:.1%}",
    "eta_seconds": lambda value: f"ETA {short_duration(value)}",
    "peak_device_memory_bytes": lambda value: f"mem {value / 2**30:.1f}GiB",
    "straggler_ratio": lambda value: f"slowest process {value:.2f}x" if value > STRAGGLER_THRESHOLD else None,
    "eval_perplexity": lambda value: f"perplexity {value:.4g}",
    "eval_bits_per_byte": lambda value: f"bits/byte {value:.4f}",
}
# The rest is for curves.
_NOT_SHOWN = {
    "epoch", "step", "tokens", "total_flos", "train_runtime", "eval_runtime", "train_samples_per_second", "train_steps_per_second",
    "eval_samples_per_second", "eval_steps_per_second", "mfu_banded", "model_tflops_per_second",
    "peak_host_memory_bytes", "nonfinite_steps",
}  # fmt: skip


class LossCurveCallback(TrainerCallback):
    """Draws loss, learning rate and batch against tokens as a PNG, at every evaluation and at the end.

    All comes from the log history, which a checkpoint keeps: a resumed run's curves are whole.

    Args:
        path: The PNG.
        tokens_per_step: Tokens of one optimizer step, for logs that have no `tokens`; without them the axis is steps.
    """

    def __init__(self, path: str | Path, tokens_per_step: int | None = None):
        self.path = Path(path)
        self.tokens_per_step = tokens_per_step

    def _redraw(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with _disk_may_be_full("loss curve"):
                self.draw(state.log_history)

    on_evaluate = _redraw
    on_train_end = _redraw

    def draw(self, log_history: list[dict[str, Any]]) -> None:
        """Draw the curves of a Trainer's log history."""
        # Not pyplot: no global state, and no window opens in a notebook or over ssh.
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

        curves = {key: self.points(log_history, key) for key in ("loss", "eval_loss", "learning_rate", "batch_tokens")}
        lower = [key for key in ("learning_rate", "batch_tokens") if curves[key][0]]
        figure = Figure(figsize=(7.0, 4.0 + 1.3 * len(lower)), layout="constrained")
        panels = figure.subplots(
            1 + len(lower), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [4.0] + [1.3] * len(lower)}
        )[:, 0]
        raw = curves["loss"]
        smooth = smoothed(raw[1])
        if raw[0]:
            panels[0].plot(*raw, color="C0", linewidth=1.2, alpha=0.3 if smooth else 1.0, label="training")
        if smooth:
            panels[0].plot(raw[0], smooth, color="C0", linewidth=1.4, label="training, smoothed")
        if curves["eval_loss"][0]:
            panels[0].plot(*curves["eval_loss"], "o-", color="C1", markersize=4, linewidth=1.2, label="held out")
        panels[0].set_ylabel("loss (nats per token)")
        if panels[0].lines:
            panels[0].legend()
        for axes, key in zip(panels[1:], lower):
            axes.plot(
                *curves[key], color="C2", linewidth=1.2, drawstyle="steps-pre" if key == "batch_tokens" else None
            )
            axes.set_ylabel(key.replace("_", " "))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
            axes.set_ylim(bottom=0)
        for axes in panels:
            axes.grid(alpha=0.3)
        panels[-1].set_xlabel("tokens" if self._in_tokens(log_history) else "steps")
        panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        with written_whole(self.path) as temporary:
            try:
                figure.savefig(temporary, dpi=120, format="png")
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    def _in_tokens(self, log_history: list[dict[str, Any]]) -> bool:
        return self.tokens_per_step is not None or any("tokens" in entry for entry in log_history)

    def points(self, log_history: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
        """Tokens (or steps) and values of one quantity."""
        tokens_at = {entry["step"]: entry["tokens"] for entry in log_history if "tokens" in entry}
        in_tokens = self._in_tokens(log_history)
        xs, ys = [], []
        for entry in log_history:
            if key in entry:
                step = entry["step"]
                tokens = tokens_at.get(step, step * self.tokens_per_step if self.tokens_per_step else None)
                x = step if not in_tokens else 0 if step == 0 else tokens
                if x is not None:
                    xs.append(x)
                    ys.append(entry[key])
        return xs, ys


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

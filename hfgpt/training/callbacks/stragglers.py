"""What differs between processes: the slowest, and memory."""

import math
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object

from .common import AddsToLogs, logger, peak_device_memory_bytes, peak_host_memory_bytes


STRAGGLER_THRESHOLD = 1.2
NOTICEABLE_SECONDS = 0.01  # of a micro-batch; below, a process is late by chance


class StragglerCallback(AddsToLogs):
    """What differs between processes: the time each needs for its own work, and memory; gathered at log lines only.

    The trainer wraps what a process does alone, such as a micro-batch's forward, in `timed()`. Under DDP and ZeRO-1
    and 2 a forward waits for nobody, so its time tells a slow device, or a slow host where that keeps the device
    waiting. Under ZeRO-3 and FSDP each layer waits for the slowest process, so all seem equally slow: only what is
    timed outside of forward, such as fetching data, is told apart there.

    Args:
        threshold: Times the median from which a process is named in a warning.

    Example:
        ```python
        from hfgpt.training.callbacks import StragglerCallback
        StragglerCallback().insert_in(trainer)
        trainer.train()
        ```
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

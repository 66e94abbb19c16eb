"""Being told to stop: SIGTERM and SIGUSR1 become a save at the next step boundary that all processes agree on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# EX_TEMPFAIL of sysexits.h: try again later. Slurm's RequeueExit takes it.
REQUEUE_EXIT_CODE = 75
INTERRUPTED_FILE = "interrupted.json"


class Interrupted(SystemExit):
    """The run was told to stop, has saved, and can go on from there; the process ends with `REQUEUE_EXIT_CODE`."""

    def __init__(self, message: str):
        super().__init__(REQUEUE_EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopAgreement:
    """Whether any process was signalled, asked of all without waiting: each step learns what was so when it began.

    The question travels by gloo in the background, whatever the processes train over.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._answer: torch.Tensor | None = None
        self._work: dist.Work | None = None
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; afterwards they do what they did before. Outside the main thread nothing is taken."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def ask(self) -> None:
        """At the beginning of a step."""
        self._answer = torch.tensor(self._signal)
        if self._group is not None:
            self._work = dist.all_reduce(self._answer, dist.ReduceOp.MAX, self._group, async_op=True)

    def answer(self) -> str | None:
        """At its end: the name of the signal that a process had received, the same in all."""
        if self._answer is None:
            return None
        if self._work is not None:
            self._work.wait()
        number = int(self._answer)
        return signal.Signals(number).name if number else None

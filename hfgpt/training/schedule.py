"""The learning rate and the batch size, as pure functions of the tokens seen.

Source: Brown et al. 2020 (arXiv 2005.14165), appendix B. Nothing here knows of steps taken before, processes or
optimizers, so a run that stops, resumes or changes its number of processes stays on the same curves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass


def learning_rate_factor(tokens: int, warmup_tokens: int, decay_tokens: int, min_ratio: float) -> float:
    """Share of the peak learning rate after `tokens` tokens.

    Linear warm-up over `warmup_tokens`, cosine down to `min_ratio` at `decay_tokens`, constant from there on.

    Args:
        tokens: Tokens seen.
        warmup_tokens: Tokens of warm-up; the paper's are 375M.
        decay_tokens: Tokens at which the cosine ends; the paper's are 260B.
        min_ratio: Where it ends, as a share of the peak; the paper's is 0.1.
    """
    if tokens < warmup_tokens:
        return tokens / warmup_tokens
    if tokens >= decay_tokens:
        return min_ratio
    progress = (tokens - warmup_tokens) / (decay_tokens - warmup_tokens)
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def batch_size_tokens(tokens: int, full_tokens: int, start_tokens: int, ramp_tokens: int) -> float:
    """Batch size in tokens after `tokens` tokens: linear from `start_tokens` to `full_tokens` over `ramp_tokens`.

    Args:
        tokens: Tokens seen.
        full_tokens: The full batch; the paper's is 0.5M to 3.2M by size of the model.
        start_tokens: The first batch; the paper's is 32k.
        ramp_tokens: Tokens over which it grows, 4B to 12B in the paper; 0: it is full from the beginning.
    """
    if tokens >= ramp_tokens:
        return float(full_tokens)
    return start_tokens + (full_tokens - start_tokens) * tokens / ramp_tokens


@dataclass(frozen=True)
class BatchSchedule:
    """The batch of every optimizer step, in whole sequences.

    A step's batch is the whole multiple of `increment` sequences nearest to `batch_size_tokens` at the tokens seen when
    the step begins, and one increment at least. All arithmetic is in integers.

    Attributes:
        sequence_length: Tokens in a sequence.
        increment: Sequences by which the batch grows; the full batch is a multiple of it, too.
        full_tokens: The full batch, in tokens.
        start_tokens: The first batch, in tokens.
        ramp_tokens: Tokens over which it grows; 0: it does not.
    """

    sequence_length: int
    increment: int
    full_tokens: int
    start_tokens: int = 0
    ramp_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("sequence_length", "increment", "full_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.ramp_tokens < 0:
            raise ValueError(f"`batch_ramp_tokens` must be at least 0, got {self.ramp_tokens}.")
        if self.ramp_tokens and not 0 < self.start_tokens <= self.full_tokens:
            raise ValueError(
                f"`batch_ramp_start_tokens` ({self.start_tokens}) must be above 0 and at most the full batch "
                f"(`batch_size_tokens`, {self.full_tokens})."
            )

    @property
    def full_sequences(self) -> int:
        """Sequences of a full batch."""
        return self.sequences(self.ramp_tokens * self.sequence_length)

    def sequences(self, sequences_seen: int) -> int:
        """Sequences of the step that begins after `sequences_seen`."""
        return self._multiple(sequences_seen * self.sequence_length) * self.increment

    def _multiple(self, tokens: int) -> int:
        """Increments in the batch: the nominal batch over the increment, to the nearest, halves up."""
        unit = 2 * self.increment * self.sequence_length
        if tokens >= self.ramp_tokens:
            return max(1, (2 * self.full_tokens + unit // 2) // unit)
        grown = self.start_tokens * self.ramp_tokens + (self.full_tokens - self.start_tokens) * tokens
        return max(1, (2 * grown + self.ramp_tokens * (unit // 2)) // (self.ramp_tokens * unit))

    def steps(self, sequences_seen: int = 0) -> Iterator[tuple[int, int]]:
        """The steps from `sequences_seen` on, without end: the first sequence of each and how many it has."""
        while True:
            count = self.sequences(sequences_seen)
            yield sequences_seen, count
            sequences_seen += count

    def position_after(self, steps: int, sequences_seen: int = 0) -> int:
        """Sequences seen after `steps` more steps."""
        return self._walk(sequences_seen, steps, None)[1]

    def steps_until(self, train_tokens: int, sequences_seen: int = 0) -> int:
        """Steps from `sequences_seen` on until at least `train_tokens` tokens are seen."""
        return self._walk(sequences_seen, None, -(-train_tokens // self.sequence_length))[0]

    def _walk(self, seen: int, steps: int | None, goal: int | None) -> tuple[int, int]:
        """Steps taken and sequences seen, until one of both is reached; a stretch of equal batches at a time."""
        taken = 0
        while (steps is None or taken < steps) and (goal is None or seen < goal):
            count, stretch = self.sequences(seen), []
            if steps is not None:
                stretch.append(steps - taken)
            if goal is not None:
                stretch.append(-(-(goal - seen) // count))
            ends = self._end_of_level(seen)
            if ends is not None:
                stretch.append(-(-(ends - seen) // count))
            taken += min(stretch)
            seen += min(stretch) * count
        return taken, seen

    def _end_of_level(self, seen: int) -> int | None:
        """The sequences seen at which the batch next differs from that at `seen`; None where it is full."""
        tokens = seen * self.sequence_length
        if tokens >= self.ramp_tokens:
            return None
        last = -(-self.ramp_tokens // self.sequence_length)
        level, low, high = self.sequences(seen), seen, last
        if self.sequences(high) == level:
            return None
        while high - low > 1:  # the batch only grows
            middle = (low + high) // 2
            if self.sequences(middle) == level:
                low = middle
            else:
                high = middle
        return high

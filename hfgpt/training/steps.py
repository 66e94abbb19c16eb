"""The data of every optimizer step, for any number of processes, and where in the data a run is.

Which samples a step has is a pure function of the sequences seen before it (`BatchSchedule`, `PackedDataset`), not of the
processes: these only divide its rows. So a run goes on with exactly the next sample, at once, whatever it resumes on.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..data.packing import IGNORE_INDEX


POSITION_FILE = "data_position.json"


@dataclass
class Position:
    """Where a run is in its data; saved with every checkpoint.

    Attributes:
        sequence_length: Tokens in a sequence.
        sequences_seen: Sequences trained on, the schedule's clock.
        sequences_skipped: Sequences passed over by rollbacks: sample i of the schedule is row i + this of the data.
        batch_increment: Sequences by which the batch grows (`BatchSchedule`).
        batch_size_tokens: Tokens of a full batch.
        order: What the order of the data depends on: seed, weights and sizes of the sources.
        nonfinite_steps: Steps that were skipped because of a loss or gradients that were not finite.
        rollbacks: Returns to a checkpoint so far.
        loss_sum: Sum of the losses of the steps since the last log line; the next one has their mean.
        loss_steps: How many these are.
    """

    sequence_length: int
    sequences_seen: int = 0
    sequences_skipped: int = 0
    batch_increment: int = 0
    batch_size_tokens: int = 0
    order: dict[str, Any] = field(default_factory=dict)
    nonfinite_steps: list[int] = field(default_factory=list)
    rollbacks: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on."""
        return self.sequences_seen * self.sequence_length

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        (folder / POSITION_FILE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Position | None":
        """That of a checkpoint; None where there is none.

        Raises:
            ValueError: It cannot be read.
        """
        path = folder / POSITION_FILE
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a position that this version wrote: {error}") from None


class StepRows(Dataset):
    """The rows that one process trains on in a step.

    A step's rows are divided evenly; where they cannot be, the last processes' last rows are idle: they are run, as all
    processes must take part, and have no label that counts.

    Args:
        dataset: Samples by index: dicts of tensors with `labels`.
        rank: This process among those with data of their own.
        world: How many they are.
        offset: Added to every index.
    """

    def __init__(self, dataset: Any, rank: int, world: int, offset: int = 0):
        self.dataset, self.rank, self.world, self.offset = dataset, rank, world, offset

    def __getitem__(self, step: tuple[int, int]) -> dict[str, torch.Tensor]:
        """For (first sequence, sequences in the step): each entry stacked, (rows, ...)."""
        first, count = step
        share = -(-count // self.world)
        mine = range(self.rank * share, (self.rank + 1) * share)
        rows = [self.dataset[self.offset + first + min(row, count - 1)] for row in mine]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        batch["labels"][max(count - mine.start, 0) :] = IGNORE_INDEX
        return batch


class StepLoader:
    """What Trainer gets for a data loader: without a length, as steps differ in size; the trainer reads `batches`.

    Args:
        rows: Rows of each step.
        **options: Of `torch.utils.data.DataLoader`: workers, pinned memory, prefetching.
    """

    def __init__(self, rows: StepRows, **options: Any):
        self.rows, self.options = rows, options

    def batches(self, steps: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
        """The rows of these steps, read ahead by worker processes where there are any."""
        loader = DataLoader(
            self.rows,
            batch_size=None,
            sampler=steps,
            collate_fn=_as_is,
            # Without its own, a resumed run would draw once more from the generator that the model draws from.
            generator=torch.Generator(),
            **self.options,
        )
        return iter(loader)

    def __iter__(self) -> Iterator[None]:
        return iter(())


def _as_is(batch: Any) -> Any:
    return batch

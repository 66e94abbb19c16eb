"""The order of training over sources of different weights: sample i of a run as a pure function of (seed, i).

The run is cut into blocks of 65,536 samples. A block holds a whole number of samples of every source, spread evenly
and at random over it, so that the run has its weights after any number of samples and not only at its end; and any
sample is found in constant time and memory, so a run starts or resumes at any token, on any number of processes.

What is drawn must be the same on every machine for good. So it is integers throughout: BLAKE2 digests, the raw 64-bit
words of numpy's Philox (a counter-based generator whose words numpy promises not to change) and a stable sort.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import Any

import numpy as np


# Samples in a block. A source needs at least one of them: no weight may be below 1/65,536 of the sum.
BLOCK = 65_536


def permute(index: int, size: int, seed: int, epoch: int) -> int:
    """Where `index` goes in the permutation of `range(size)` drawn by (seed, epoch).

    A Feistel network on the smallest even number of bits that holds `size`, walked until it lands inside: constant
    time and memory, so the order of a run never has to be computed or stored as a whole.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            mixed = (right * 0x9E3779B97F4A7C15 + seed * 0xBF58476D1CE4E5B9 + epoch * 0x94D049BB133111EB + turn) & (
                2**64 - 1
            )
            mixed ^= mixed >> 30
            mixed = (mixed * 0xBF58476D1CE4E5B9) & (2**64 - 1)
            mixed ^= mixed >> 27
            mixed = (mixed * 0x94D049BB133111EB) & (2**64 - 1)
            mixed ^= mixed >> 31
            left, right = right, left ^ (mixed & mask)
        index = (left << half) | right
        if index < size:
            return index


class Mixture:
    """Which sequence of which source every sample of a run is.

    Weights are shares of the run's samples whatever the sources' sizes: a small source with a large weight is read
    for several epochs, a large one with a small weight in part. Within an epoch of a source no sequence comes twice.

    After any k samples the count of a source is at most 2 + weight x sources away from weight x k, mostly less than 2.

    Args:
        weights: Weight of every source, of any sum; their order means nothing.
        sequences: Whole sequences in every source. The order of the sources decides where two fall on one place.
        seed: Seed of the order.

    Raises:
        ValueError: A source without a weight or a weight without a source; a weight that is not a positive number, or
            below 1/65,536 of the sum; a source of less than one sequence.
    """

    def __init__(self, weights: Mapping[str, float], sequences: Mapping[str, int], seed: int = 0):
        _check(weights, sequences)
        self.sources = tuple(sequences)
        self.sequences = tuple(sequences.values())
        # As integers over one denominator a float is exact, and so is the sum.
        exact = [Fraction(weights[source]) for source in self.sources]
        scale = math.lcm(*(weight.denominator for weight in exact))
        shares = [int(weight * scale) for weight in exact]
        self._ends = tuple(accumulate(shares))
        self.weights = {source: share / self._ends[-1] for source, share in zip(self.sources, shares)}
        for source, share in zip(self.sources, shares):
            if share * BLOCK < self._ends[-1]:
                raise ValueError(
                    f"`weight` of source {source!r} ({weights[source]}) is {self.weights[source]:.1e} of the sum, below "
                    f"1/{BLOCK:,}, the smallest share that can be kept: raise it or leave the source out of the corpus."
                )
        self._keys = tuple(_digest(f"{seed}\0place\0{source}", 16) for source in self.sources)
        self._seeds = tuple(_digest(f"{seed}\0order\0{source}", 8) for source in self.sources)

    def locate(self, index: int) -> tuple[str, int, int]:
        """Sample `index` of the run: its source, the epoch of that source, and the sequence's place in the source."""
        if index < 0:
            raise IndexError(index)
        block, slot = divmod(index, BLOCK)
        chosen, ordinals = _block_order(self._ends, self._keys, block)
        source = int(chosen[slot])
        epoch, position = divmod(int(ordinals[slot]), self.sequences[source])
        return self.sources[source], epoch, permute(position, self.sequences[source], self._seeds[source], epoch)

    def counts(self, num_samples: int) -> dict[str, int]:
        """How many of the run's first `num_samples` samples each source gives."""
        if num_samples < 0:
            raise ValueError(f"`num_samples` must be at least 0, got {num_samples}.")
        block, rest = divmod(num_samples, BLOCK)
        counts = _samples_before(self._ends, block)
        if rest:
            chosen, _ = _block_order(self._ends, self._keys, block)
            counts = [a + int(b) for a, b in zip(counts, np.bincount(chosen[:rest], minlength=len(counts)))]
        return dict(zip(self.sources, counts))

    def report(self, num_samples: int, sequence_length: int) -> list[dict[str, Any]]:
        """What a run of `num_samples` samples reads, a row for each source, as in table 2.2 of the paper.

        Returns:
            Rows of `source`; `weight`, normalised; `realised_weight`, its share of the samples; `samples`; `tokens`;
            and `epochs`, a fraction where a source is read in part.
        """
        return [
            {
                "source": source,
                "weight": self.weights[source],
                "realised_weight": samples / num_samples if num_samples else 0.0,
                "samples": samples,
                "tokens": samples * sequence_length,
                "epochs": samples / size,
            }
            for (source, samples), size in zip(self.counts(num_samples).items(), self.sequences)
        ]


def _check(weights: Mapping[str, float], sequences: Mapping[str, int]) -> None:
    known = ", ".join(sequences)
    for source, weight in weights.items():
        if source not in sequences:
            raise ValueError(f"`weight` is given for {source!r}, which is no source of this corpus; it has {known}.")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (number and weight > 0 and math.isfinite(weight)):
            raise ValueError(f"`weight` of source {source!r} must be a number above 0, got {weight!r}.")
    for source, size in sequences.items():
        if source not in weights:
            raise ValueError(
                f"`weight` of source {source!r} is missing: give one to every source ({known}), or to none for their "
                "share of the tokens."
            )
        if size < 1:
            raise ValueError(
                f"Source {source!r} has a `weight` ({weights[source]}) and less than one sequence: add text to it, "
                "shorten `sequence_length`, or leave the source out of the corpus."
            )


def _digest(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "little")


def _samples_before(ends: Sequence[int], block: int) -> list[int]:
    """Samples of each source in the blocks before `block`: each within one of its share, together all of them.

    `ends` are the running sums of the weights. Rounded are the shares of these sums, not each source's, so that
    nothing is left over, and always from the start of the run, so that no error adds up over blocks. No count falls
    from one block to the next, since every weight is worth at least one sample of a block.
    """
    samples, total = block * BLOCK, ends[-1]
    rounded = [(2 * samples * end + total) // (2 * total) for end in ends]
    return [stop - start for start, stop in pairwise([0, *rounded])]


# Half a megabyte a block. Readers go through the run in order, each worker about where the others are.
@lru_cache(maxsize=8)
def _block_order(ends: tuple[int, ...], keys: tuple[int, ...], block: int) -> tuple[np.ndarray, np.ndarray]:
    """For each slot of a block: the index of its source, and which sample of that source it is in the run.

    The j-th of a source's n samples in the block is put at (j + u) / n of it, u drawn from [0, 1) for each: one in
    every n-th part of the block.
    """
    before, after = _samples_before(ends, block), _samples_before(ends, block + 1)
    places, chosen, ordinals = [], [], []
    for source, (first, stop) in enumerate(zip(before, after)):
        count = stop - first
        drawn = np.random.Philox(key=keys[source], counter=block << 64).random_raw(count)
        # (j + u) of 16 + 48 bits; over n they are 48 bits, for all sources on one scale.
        numerators = (np.arange(count, dtype=np.uint64) << np.uint64(48)) | (drawn >> np.uint64(16))
        places.append(numerators // np.uint64(max(count, 1)))
        chosen.append(np.full(count, source, dtype=np.int32))
        ordinals.append(np.arange(first, stop, dtype=np.int64))
    # Stable: of equal places the first source's comes first, and a source's samples keep their order.
    order = np.argsort(np.concatenate(places), kind="stable")
    assert len(order) == BLOCK
    return np.concatenate(chosen)[order], np.concatenate(ordinals)[order]

"""Which sample comes next, as arithmetic: from (seed, epoch, shard sizes, lanes, index) to a sample. No I/O, no state.

An epoch's shards, permuted by (seed, epoch), are laid end to end and cut into `lanes` slices of equal length (to one
sample). A lane reads its slice block by block and shuffles inside each block. Every optimizer step takes the same number
of rows from every lane, so the global batches are the same for any number of ranks and workers, and resuming is a
look-up. What must be repeatable for years is drawn by `mix64`, not by a library's generator whose stream may change.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
KEPT_EPOCHS = 4


def mix64(*words: int) -> int:
    """A 64-bit hash of whole numbers (splitmix64 chained over the words)."""
    state = 0
    for word in words:
        state = (state ^ (word & MASK)) + GOLDEN & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


def permutation(length: int, *key: int) -> NDArray[np.int64]:
    """A permutation of `range(length)` drawn by `key`; the same on every machine and numpy version."""
    with np.errstate(over="ignore"):
        x = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(mix64(*key))
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable")


@dataclass(frozen=True)
class SamplePlace:
    """One sample of a data set, and which visit of it this is."""

    epoch: int
    shard: int
    """Position of the shard in the manifest."""
    sample: int
    """Position of the sample in its shard."""


class Lanes:
    """The order of one data set.

    A data set smaller than `lanes` is laid out several times an epoch (`repeats`), each time in another order, so that no
    lane is empty. Memory: some bytes a shard and `block` indexes for each lane in use; the time of a look-up does not
    depend on how far into a lane it is.
    """

    def __init__(self, shard_samples: NDArray[np.int64], lanes: int, seed: int, block: int = 1024) -> None:
        assert lanes > 0 and block > 0 and len(shard_samples) and shard_samples.min() > 0
        self.shard_samples = np.asarray(shard_samples, dtype=np.int64)
        self.samples = int(self.shard_samples.sum())
        self.lanes = lanes
        self.seed = seed
        self.block = block
        # Two samples a lane at least, so that every block holds a partner for coupling.
        self.repeats = -(-2 * lanes // self.samples) if self.samples < 2 * lanes else 1
        self._shards: OrderedDict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._blocks: dict[int, tuple[tuple[int, int], NDArray[np.integer]]] = {}

    def length(self, lane: int) -> int:
        """Samples of `lane` in one epoch; lanes differ by one at most."""
        return self._start(lane + 1) - self._start(lane)

    def at(self, lane: int, index: int) -> SamplePlace:
        """Sample `index` (0, 1, …, without end) of `lane`."""
        epoch, offset = divmod(index, self.length(lane))
        block, start = self._block_of(lane, offset)
        return self._place(epoch, lane, start + int(self._block_order(epoch, lane, block)[offset - start]))

    def block_at(self, lane: int, index: int) -> tuple[int, int]:
        """The epoch of that sample, and the number of its block: what is shuffled and coupled together."""
        epoch, offset = divmod(index, self.length(lane))
        return epoch, self._block_of(lane, offset)[0]

    def places(self, lane: int, index: int) -> list[SamplePlace]:
        """All samples of that block, in the order of the shards."""
        epoch, offset = divmod(index, self.length(lane))
        block, start = self._block_of(lane, offset)
        size = len(self._block_order(epoch, lane, block))
        return [self._place(epoch, lane, start + offset) for offset in range(size)]

    def partner(self, lane: int, index: int, ring: NDArray[np.integer] | None = None) -> SamplePlace:
        """The sample that follows sample `index` in its couple: the next in `ring`, which starts over after its last.

        A ring is an order of the block's `places`, by default the shuffled one. So each sample of an epoch is once
        the first and once the second of a couple, and never both of one.
        """
        first = self.at(lane, index)
        epoch, offset = divmod(index, self.length(lane))
        block, start = self._block_of(lane, offset)
        order, at = self._block_order(epoch, lane, block), offset - start
        if ring is not None:
            order, at = ring, int(np.flatnonzero(ring == order[at])[0])
        for step in range(1, len(order)):
            place = self._place(epoch, lane, start + int(order[(at + step) % len(order)]))
            if (place.shard, place.sample) != (first.shard, first.sample):
                return place
        # Only a data set laid out several times an epoch can have a block of one sample alone: take its neighbour.
        flat = (int(self.shard_samples[: first.shard].sum()) + first.sample + 1) % self.samples
        shard = int(np.searchsorted(np.cumsum(self.shard_samples), flat, side="right"))
        return SamplePlace(epoch, shard, flat - int(self.shard_samples[:shard].sum()))

    def _start(self, lane: int) -> int:
        return lane * self.samples * self.repeats // self.lanes

    def _block_of(self, lane: int, offset: int) -> tuple[int, int]:
        """The block that `offset` lies in and where it starts; blocks of a lane are equal to one sample."""
        length = self.length(lane)
        blocks = max(1, length // self.block)
        block = ((offset + 1) * blocks - 1) // length
        return block, block * length // blocks

    def _block_order(self, epoch: int, lane: int, block: int) -> NDArray[np.integer]:
        """The order inside a block; each lane keeps its current one only."""
        current = self._blocks.get(lane)
        if current is None or current[0] != (epoch, block):
            length = self.length(lane)
            blocks = max(1, length // self.block)
            size = (block + 1) * length // blocks - block * length // blocks
            order = permutation(size, self.seed, 1, epoch, lane, block)
            current = (epoch, block), order.astype(np.min_scalar_type(size))
            self._blocks[lane] = current
        return current[1]

    def _shard_order(self, epoch: int, repeat: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of shards, and where each ends; the last few are kept, as lanes change epochs one by one."""
        if (epoch, repeat) not in self._shards:
            order = permutation(len(self.shard_samples), self.seed, 0, epoch, repeat)
            self._shards[epoch, repeat] = order, np.cumsum(self.shard_samples[order])
            if len(self._shards) > KEPT_EPOCHS:
                self._shards.popitem(last=False)
        return self._shards[epoch, repeat]

    def _place(self, epoch: int, lane: int, offset: int) -> SamplePlace:
        repeat, flat = divmod(self._start(lane) + offset, self.samples)
        order, ends = self._shard_order(epoch, repeat)
        rank = int(ends.searchsorted(flat, side="right"))
        shard = int(order[rank])
        return SamplePlace(epoch, shard, flat - int(ends[rank]) + int(self.shard_samples[shard]))

"""The order of samples, computed from (seed, epoch, shard sizes, lanes, index) without I/O or state.

An epoch's shards, permuted by (seed, epoch), are laid end to end and cut into `lanes` slices of equal length, give or take
one sample. A lane reads its slice block by block and shuffles within each block. Every optimizer step takes the same number
of rows from every lane, so the global batches do not depend on the number of ranks and workers, and resuming is a lookup.
Random numbers come from `mix64`, because the generators of libraries may change between versions.
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
    """A 64-bit hash of integers (splitmix64, chained)."""
    state = 0
    for word in words:
        state = (state ^ (word & MASK)) + GOLDEN & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


def permutation(length: int, *key: int) -> NDArray[np.int64]:
    """A permutation of `range(length)` seeded by `key`; the same on every machine and numpy version."""
    with np.errstate(over="ignore"):
        x = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(mix64(*key))
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable")


@dataclass(frozen=True)
class SamplePlace:
    """One sample of a data set in one epoch."""

    epoch: int
    shard: int
    """Index of the shard in the manifest."""
    sample: int
    """Index of the sample in its shard."""


class Lanes:
    """The order of one data set.

    A data set smaller than `lanes` is repeated within an epoch (`repeats`), each time in another order, so that no lane is
    empty. Takes a few bytes per shard and `block` indexes per lane in use; lookups take constant time.
    """

    def __init__(self, shard_samples: NDArray[np.int64], lanes: int, seed: int, block: int = 1024) -> None:
        assert lanes > 0 and block > 0 and len(shard_samples) and shard_samples.min() > 0
        self.shard_samples = np.asarray(shard_samples, dtype=np.int64)
        self.samples = int(self.shard_samples.sum())
        self.lanes = lanes
        self.seed = seed
        self.block = block
        # At least two samples per lane, so that every block holds a partner for coupling.
        self.repeats = -(-2 * lanes // self.samples) if self.samples < 2 * lanes else 1
        self._shards: OrderedDict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._blocks: dict[int, tuple[tuple[int, int], NDArray[np.integer]]] = {}

    def length(self, lane: int) -> int:
        """Samples of `lane` in one epoch; lanes differ by at most one."""
        return self._start(lane + 1) - self._start(lane)

    def at(self, lane: int, index: int) -> SamplePlace:
        """Sample `index` of `lane`, for any `index` ≥ 0."""
        epoch, offset = divmod(index, self.length(lane))
        block, start = self._block_of(lane, offset)
        return self._place(epoch, lane, start + int(self._block_order(epoch, lane, block)[offset - start]))

    def block_at(self, lane: int, index: int) -> tuple[int, int]:
        """The epoch of sample `index`, and the number of its block."""
        epoch, offset = divmod(index, self.length(lane))
        return epoch, self._block_of(lane, offset)[0]

    def places(self, lane: int, index: int) -> list[SamplePlace]:
        """All samples in the block of sample `index`, in the order of the shards."""
        epoch, offset = divmod(index, self.length(lane))
        block, start = self._block_of(lane, offset)
        size = len(self._block_order(epoch, lane, block))
        return [self._place(epoch, lane, start + offset) for offset in range(size)]

    def partner(self, lane: int, index: int, ring: NDArray[np.integer] | None = None) -> SamplePlace:
        """The partner of sample `index`: the next one in `ring`, which wraps around.

        A ring is an order of the block's `places`, by default the shuffled one. So in an epoch each sample is the first
        of one couple and the second of another.
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
        # Only a repeated data set can have a block with a single distinct sample: take that sample's neighbour.
        flat = (int(self.shard_samples[: first.shard].sum()) + first.sample + 1) % self.samples
        shard = int(np.searchsorted(np.cumsum(self.shard_samples), flat, side="right"))
        return SamplePlace(epoch, shard, flat - int(self.shard_samples[:shard].sum()))

    def _start(self, lane: int) -> int:
        return lane * self.samples * self.repeats // self.lanes

    def _block_of(self, lane: int, offset: int) -> tuple[int, int]:
        """The block that contains `offset`, and its start; the blocks of a lane differ by at most one sample."""
        length = self.length(lane)
        blocks = max(1, length // self.block)
        block = ((offset + 1) * blocks - 1) // length
        return block, block * length // blocks

    def _block_order(self, epoch: int, lane: int, block: int) -> NDArray[np.integer]:
        """The order within a block; only the current block of each lane is cached."""
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
        """The epoch's order of shards and their ends. The last few are cached, as lanes enter an epoch one by one."""
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

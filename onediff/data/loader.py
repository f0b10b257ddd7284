"""The micro-batches of one data-parallel rank, each with the cursor after it.

Rank r of D reads lanes r, r + D, …; a global batch is one row from every lane. Rows enter batches in order, so the batches
do not depend on the number of worker processes.

`read_batches`, `share_batches` and `onediff.data.device.copy_batches` are stages: iterators over `(batch, cursor)`, each
over the previous one. `load` composes them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from onediff.config.data import DataConfig
from onediff.data.ahead import rows
from onediff.data.batch import Batch
from onediff.data.cursor import Cursor
from onediff.data.device import copy_batches
from onediff.data.rows import collate, collate_packed
from onediff.data.sample import Fault
from onediff.data.stream import Stream
from onediff.errors import UserError
from onediff.parallel.topology import Topology

log = logging.getLogger(__name__)

NAMED = 10
"""Unreadable samples of each kind that a rank logs by name; after that it logs a summary whenever their number doubles."""


@dataclass(frozen=True)
class RankShare:
    """One rank's part of each global batch."""

    lanes: tuple[int, ...]
    micro_batch: int

    @classmethod
    def of_rank(cls, global_batch: int, micro_batch: int, dp_rank: int, dp_size: int) -> RankShare:
        """Lanes dp_rank, dp_rank + dp_size, …. Raises UserError if the batch cannot be divided evenly."""
        if global_batch % (micro_batch * dp_size):
            raise UserError(
                f"global_batch {global_batch} cannot be divided among {dp_size} data-parallel ranks in micro-batches "
                f"of {micro_batch}: it must be a multiple of {micro_batch * dp_size}"
            )
        return cls(tuple(range(dp_rank, global_batch, dp_size)), micro_batch)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one optimizer step."""
        return len(self.lanes) // self.micro_batch


def load(
    stream: Stream, micro_batch: int, cursor: Cursor, data: DataConfig, topology: Topology, device: torch.device
) -> Iterator[tuple[Batch, Cursor]]:
    """Yields endless micro-batches on `device`, the same on all ranks of a tensor group. Collective over the group.

    Raises UserError, on all ranks of the group, if too many samples are bad.
    """
    batches = read_batches(stream, micro_batch, cursor, data.workers, data.prefetch, data.bad_share)
    return copy_batches(share_batches(batches, topology), device)


def read_batches(
    stream: Stream, micro_batch: int, cursor: Cursor, workers: int, prefetch: int, bad_share: float
) -> Iterator[tuple[Batch, Cursor]]:
    """Yields endless micro-batches of the lanes of `cursor`, read and decoded by `workers` processes.

    The processes start at the first `next`. Raises UserError if too many samples are bad.
    """
    # All workers together prefetch `prefetch` micro-batches, but at least one row per worker.
    a_worker = prefetch * max(1, -(-micro_batch // max(1, workers)))
    lanes, left_out = dict(cursor.lanes), LeftOut(stream, bad_share)
    in_turn = rows(stream, cursor.lanes, workers, a_worker)
    while True:
        micro = []
        for lane, samples, behind in islice(in_turn, micro_batch):
            micro.append(samples)
            lanes[lane] = behind
        batch = collate_packed(micro, stream.pack) if stream.pack else collate([one for (one,) in micro])
        left_out.count(batch)
        yield batch, Cursor(dict(lanes), left_out.skipped.copy(), left_out.cut.copy())


def share_batches(batches: Iterator[tuple[Batch, Cursor]], topology: Topology) -> Iterator[tuple[Batch, Cursor]]:
    """Yields the batches of the reading rank on all ranks of its tensor group; the others never touch `batches`.

    Collective over the group. A UserError on the reading rank is raised on all of them.
    """
    while True:
        made: Any = None
        if topology.reads:
            try:
                made = next(batches)
            except UserError as error:
                made = str(error)
        made = topology.from_reader(made)
        if isinstance(made, str):
            raise UserError(made)
        yield made


class LeftOut:
    """Counts and logs the samples that a rank skips and the answers that it cuts."""

    def __init__(self, stream: Stream, bad_share: float) -> None:
        self.stream = stream
        self.bad_share = bad_share
        self.read = 0
        """Samples read, including bad ones."""
        self.skipped: Counter[str] = Counter()
        """Skipped samples, by kind of fault."""
        self.skipped_in: Counter[str] = Counter()
        """Skipped samples, by shard."""
        self.cut: Counter[str] = Counter()
        """Samples whose answers were cut at `data.max_tokens`, by source."""
        self.answered: Counter[str] = Counter()
        """All good samples, by source."""
        self._next_summary = 4 * NAMED

    def count(self, batch: Batch) -> None:
        """Counts what one more batch left out. Raises UserError if more than `bad_share` of the samples are bad."""
        self._count_skipped(batch)
        self._count_cut(batch)

    def _count_skipped(self, batch: Batch) -> None:
        faults: list[Fault] = batch.info["skipped"]
        self.read += batch.info["samples"] + len(faults)
        for fault in faults:
            self.skipped[fault.kind] += 1
            self.skipped_in[fault.shard] += 1
            if self.skipped[fault.kind] <= NAMED:
                log.warning("skipped an unreadable sample (%s): %s %s", *fault)
            if self.skipped.total() == self._next_summary:
                self._next_summary *= 2
                log.warning("%s", self._summary())
        if self.read >= 100 and self.skipped.total() > self.bad_share * self.read:
            last = f"; the last one: {faults[-1].shard} {faults[-1].what}" if faults else ""
            raise UserError(f"{self._summary()}, more than data.bad_share {self.bad_share:g}{last}")

    def _count_cut(self, batch: Batch) -> None:
        for number, was_cut in zip(batch.info["sources"], batch.info["cut"], strict=True):
            source = self.stream.sources[number].name
            self.answered[source] += 1
            if not was_cut:
                continue
            self.cut[source] += 1
            if self.cut[source].bit_count() == 1:  # the first, and whenever their number has doubled
                log.warning(
                    "data set %s: %d of %d answers were cut at data.max_tokens %d; raise it, or set data.too_long: skip",
                    source,
                    self.cut[source],
                    self.answered[source],
                    self.stream.processor.config.max_tokens,
                )

    def _summary(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.skipped.most_common())
        shards = ", ".join(f"{count} in {shard}" for shard, count in self.skipped_in.most_common(3))
        return f"{self.skipped.total()} of {self.read} samples are unreadable ({kinds}; most of them: {shards})"

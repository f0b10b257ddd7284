"""Micro-batches of one data-parallel rank, made in worker processes, each with the position that follows it.

Rank r of D serves lanes r, r + D, …; a global batch is one row of every lane. Rows are made by whichever worker's turn it
is, those of later micro-batches too, and laid into batches in their order, so the batches are the same for any number of
workers.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch.utils.data import DataLoader

from onediff.data.ahead import Ahead, Made, Task, Work
from onediff.data.batch import Batch
from onediff.data.rows import Row, collate, collate_packed
from onediff.data.sample import Fault
from onediff.data.stream import Stream
from onediff.errors import UserError

log = logging.getLogger(__name__)

NAMED = 10
"""Unreadable samples of each kind that a rank names in its log; of the rest, a summary whenever their number doubled."""

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Share:
    """The part of each global batch that one rank makes."""

    lanes: tuple[int, ...]
    micro_batch: int

    @classmethod
    def of_rank(cls, global_batch: int, micro_batch: int, dp_rank: int, dp_size: int) -> Share:
        """Lanes dp_rank, dp_rank + dp_size, …. Raises UserError when the batch cannot be shared out evenly."""
        if global_batch % (micro_batch * dp_size):
            raise UserError(
                f"global_batch {global_batch} cannot be shared out over {dp_size} data-parallel ranks in micro-batches "
                f"of {micro_batch}: it must be a multiple of {micro_batch * dp_size}"
            )
        return cls(tuple(range(dp_rank, global_batch, dp_size)), micro_batch)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one optimizer step."""
        return len(self.lanes) // self.micro_batch


class Loader:
    """Endless micro-batches of one rank; `draws` is where each of its lanes goes on: its next draw, or, where rows are
    packed, the draws that wait and the next one."""

    def __init__(
        self, stream: Stream, share: Share, draws: dict[int, Any], workers: int, prefetch: int, bad_share: float
    ) -> None:
        self.stream = stream
        self.share = share
        self.draws = {lane: draws[lane] for lane in share.lanes}
        self.workers = workers
        self.prefetch = prefetch
        self.bad_share = bad_share
        self.read = 0
        self.skipped: Counter[str] = Counter()
        """Unreadable samples by kind."""
        self.skipped_in: Counter[str] = Counter()
        """The same by shard."""
        self.answered: Counter[str] = Counter()
        """Samples by source, and of those the ones whose answers were cut at `data.max_tokens`."""
        self.cut: Counter[str] = Counter()
        self._next_summary = 4 * NAMED

    def __iter__(self) -> Iterator[Batch]:
        """Yields micro-batches forever. `draws`, `skipped`, `skipped_in` and `cut` are current behind each.

        Raises UserError when too many samples are bad.
        """
        others = set(multiprocessing.active_children())
        ahead, size = Ahead(self.stream, self.draws), self.share.micro_batch
        a_worker = self.prefetch * max(1, -(-size // max(1, self.workers)))
        results = map(
            _unpacked,
            DataLoader(
                Work(self.stream),
                batch_size=None,
                sampler=ahead,
                num_workers=self.workers,
                collate_fn=_packed,
                worker_init_fn=_leave_signals_to_the_rank,
                prefetch_factor=a_worker if self.workers else None,
            ),
        )
        # For good: an exception's frames can keep the workers alive even after this generator has been closed.
        atexit.register(_kill, set(multiprocessing.active_children()) - others)
        pack, lanes = self.stream.pack, self.share.lanes
        for start in cycle(range(0, len(lanes), size)):
            rows = [(lane, *ahead.row(lane, results)) for lane in lanes[start : start + size]]
            samples = [samples for _, samples, _ in rows]
            batch = collate_packed(samples, pack) if pack else collate([one for (one,) in samples])
            for lane, _, draw in rows:
                self.draws[lane] = draw
            self._count(batch)
            self._count_cut(batch)
            yield batch

    def _count(self, batch: Batch) -> None:
        faults: list[Fault] = batch.info["skipped"]
        self.read += batch.info["samples"] + len(faults)
        for fault in faults:
            self.skipped[fault.kind] += 1
            self.skipped_in[fault.shard] += 1
            if self.skipped[fault.kind] <= NAMED:
                log.warning("unreadable sample, passed over (%s): %s %s", *fault)
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


def _leave_signals_to_the_rank(worker: int) -> None:
    """Ctrl-C, `timeout` and Slurm signal every process of a group; workers end with their rank, after its checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # A rank that is killed takes them along: at their own end they would wait for it to read what they have made.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(workers: set[Any]) -> None:
    """At the rank's exit, before multiprocessing's own exit handler sends SIGTERM, which workers ignore, and waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for a worker that was killed
    for worker in workers:
        worker.kill()


TENSORS = ("token_ids", "is_target", "images")


def _packed(result: Any) -> Any:
    """A result as it crosses the process border: arrays, since torch would open a shared file for each small tensor."""
    task, made = result
    return task, made if isinstance(made, str) else [_arrays(one) if isinstance(one, Row) else one for one in made]


def _arrays(row: Row) -> dict[str, Any]:
    return vars(row) | {name: getattr(row, name).numpy() for name in TENSORS}


def _unpacked(result: Any) -> tuple[Task, Made]:
    task, made = result
    return task, made if isinstance(made, str) else [_row(one) if isinstance(one, dict) else one for one in made]


def _row(fields: dict[str, Any]) -> Row:
    return Row(**(fields | {name: torch.from_numpy(fields[name]) for name in TENSORS}))

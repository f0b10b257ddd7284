"""Batches the requests of many clients: whatever arrives while the model is busy goes into its next batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onediff.data.rows import TokenRow
    from onediff.evaluation.captioner import Captioner
    from onediff.evaluation.confidence import Judged


class Overloaded(Exception):
    """Too many requests are waiting."""


@dataclass
class Reply:
    """The answer to one request."""

    said: Judged
    attention: Any = None
    """`[2, side, side]`, if it was requested."""
    batch: int = 1
    """Number of pairs in its batch."""


@dataclass
class Waiting:
    """One pair waiting for the model."""

    row: TokenRow
    max_new_tokens: int
    wants_attention: bool
    since: float = field(default_factory=time.monotonic)
    future: Future[Reply] = field(default_factory=Future)


@dataclass
class ServingCounts:
    """Counters for `/metrics`."""

    captions: int = 0
    batches: int = 0
    failed: int = 0
    waited_seconds: float = 0.0
    """From request to answer, summed over captions."""
    busy_seconds: float = 0.0


class Batcher:
    """A thread that owns the model. Batches hold at most `max_batch` pairs of equal `max_new_tokens`, oldest first.

    A lone request is answered at once: nothing ever waits for a batch to fill.
    """

    def __init__(self, captioner: Captioner, max_batch: int = 16, max_waiting: int = 512) -> None:
        self.captioner = captioner
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.counts = ServingCounts()
        self.queue: deque[Waiting] = deque()
        self.changed = threading.Condition()
        self.ended = False
        self.thread = threading.Thread(target=self._work, name="onediff-batcher", daemon=True)
        self.thread.start()

    def ask(self, row: TokenRow, max_new_tokens: int = 64, wants_attention: bool = False) -> Reply:
        """Waits for the answer to one row. Raises Overloaded, or whatever the model raised."""
        one = Waiting(row, max_new_tokens, wants_attention)
        with self.changed:
            if self.ended or len(self.queue) >= self.max_waiting:
                raise Overloaded(f"{len(self.queue)} requests are waiting; try again later")
            self.queue.append(one)
            self.changed.notify()
        return one.future.result()

    def close(self) -> None:
        """Stops the thread after the current batch and refuses what is waiting."""
        with self.changed:
            self.ended = True
            for one in self.queue:
                one.future.set_exception(Overloaded("the server is shutting down"))
            self.queue.clear()
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            try:
                rows = [one.row for one in batch]
                said = self.captioner.judged_answers(rows, max_new_tokens=batch[0].max_new_tokens)
                looked = [one for one in batch if one.wants_attention]
                maps = iter(self.captioner.attention_maps([one.row for one in looked]) if looked else ())
                found = [
                    Reply(judged, next(maps) if one.wants_attention else None, len(batch))
                    for one, judged in zip(batch, said, strict=True)
                ]
            except Exception as error:  # the server continues with the next batch
                self.counts.failed += len(batch)
                for one in batch:
                    one.future.set_exception(error)
                continue
            now = time.monotonic()
            self.counts.captions += len(batch)
            self.counts.batches += 1
            self.counts.busy_seconds += now - began
            self.counts.waited_seconds += sum(now - one.since for one in batch)
            for one, answer in zip(batch, found, strict=True):
                one.future.set_result(answer)

    def _next(self) -> list[Waiting]:
        """The next batch; empty once the batcher is closed."""
        with self.changed:
            while not self.queue and not self.ended:
                self.changed.wait()
            if self.ended:
                return []
            longest = self.queue[0].max_new_tokens
            batch = [one for one in self.queue if one.max_new_tokens == longest][: self.max_batch]
            taken = set(map(id, batch))
            self.queue = deque(one for one in self.queue if id(one) not in taken)
            return batch

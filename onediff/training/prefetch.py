"""The next micro-batch is copied to the device while the device computes the one before it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onediff.data.batch import Batch
from onediff.data.planes import Planes
from onediff.data.segments import Segments


class SideStream:
    """Copies to a GPU from pinned memory, on a stream of their own."""

    ahead = 1
    """Batches copied before they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> Batch:
        """The batch as it will be on the device; the copying has begun."""
        with torch.cuda.stream(self.stream):
            return _each(batch, lambda tensor: tensor.pin_memory().to(self.device, non_blocking=True))

    def finish(self, batch: Batch) -> Batch:
        """The same batch for the current stream, which waits for the copies; the host does not."""
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        # Made on one stream and used on another: its memory must not be given away before both are done with it.
        return _each(batch, lambda tensor: tensor.record_stream(current) or tensor)


class InPlace:
    """No copies: the device is the host."""

    ahead = 0

    def start(self, batch: Batch) -> Batch:
        """The same batch."""
        return batch

    finish = start


Waiting = tuple[Batch, dict[int, int], Counter[str], Counter[str]]
"""A batch that is being copied, and `draws`, `skipped` and `cut` behind it."""


class Prefetched:
    """A loader whose micro-batches are on the device already.

    `draws`, `skipped` and `cut` are as of the batch last handed out, not of the one that is being copied: a checkpoint must
    not count a batch that no step has seen.
    """

    def __init__(self, loader: Any, device: torch.device, copies: Any = None) -> None:
        self.loader = loader
        self.copies = copies or (SideStream(device) if device.type == "cuda" else InPlace())
        self.draws: dict[int, int] = dict(loader.draws)
        self.skipped: Counter[str] = Counter(loader.skipped)
        self.cut: Counter[str] = Counter(loader.cut)

    def __iter__(self) -> Iterator[Batch]:
        """Yields what the loader yields, in its order."""
        waiting: deque[Waiting] = deque()
        for batch in self.loader:
            counts = Counter(self.loader.skipped), Counter(self.loader.cut)
            waiting.append((self.copies.start(batch), dict(self.loader.draws), *counts))
            if len(waiting) > self.copies.ahead:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[Waiting]) -> Batch:
        batch, self.draws, self.skipped, self.cut = waiting.popleft()
        return self.copies.finish(batch)


def _each(batch: Any, change: Any) -> Any:
    """The same batch with every tensor in it changed, those of its planes and segments too."""
    changed = {}
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            changed[name] = change(value)
        elif isinstance(value, Planes | Segments):
            changed[name] = _each(value, change)
    return replace(batch, **changed)

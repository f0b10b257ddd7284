"""The next micro-batch is copied to the device while the device computes the one before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from onediff.data.batch import Batch
from onediff.data.cursor import Cursor
from onediff.data.segments import each_tensor


class Copies(Protocol):
    """One way to bring batches to a device."""

    ahead: int
    """Batches copied before they are asked for."""

    def start(self, batch: Batch) -> Batch:
        """The batch as it will be on the device; copying has begun."""

    def finish(self, batch: Batch) -> Batch:
        """The same batch, ready for use on the current stream."""


class SideStream:
    """Copies to a GPU from pinned memory, on a stream of their own."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self.stream):
            return each_tensor(batch, lambda tensor: tensor.pin_memory().to(self.device, non_blocking=True))

    def finish(self, batch: Batch) -> Batch:
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)  # the device waits, the host does not

        def in_use(tensor: Tensor) -> Tensor:
            # Made on one stream and used on another: its memory must not be given away before both are done with it.
            tensor.record_stream(current)
            return tensor

        return each_tensor(batch, in_use)


class InPlace:
    """No copies: the device is the host."""

    ahead = 0

    def start(self, batch: Batch) -> Batch:
        return batch

    finish = start


def copy_batches(
    batches: Iterator[tuple[Batch, Cursor]], device: torch.device, copies: Copies | None = None
) -> Iterator[tuple[Batch, Cursor]]:
    """The same pairs in the same order, with the batches on `device`.

    A cursor stays with its batch, so a checkpoint never counts a batch that is still being copied.
    """
    copies = copies or (SideStream(device) if device.type == "cuda" else InPlace())
    started: deque[tuple[Batch, Cursor]] = deque()
    for batch, cursor in batches:
        started.append((copies.start(batch), cursor))
        if len(started) > copies.ahead:
            batch, cursor = started.popleft()
            yield copies.finish(batch), cursor
    for batch, cursor in started:
        yield copies.finish(batch), cursor

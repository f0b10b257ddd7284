"""Copies the next micro-batch to the device while the device computes the current one."""

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
    """A way to copy batches to a device."""

    ahead: int
    """Batches copied before they are requested."""

    def start(self, batch: Batch) -> Batch:
        """Starts the copy; returns the batch on the device, not yet ready for use."""

    def finish(self, batch: Batch) -> Batch:
        """The same batch, ready for use on the current stream."""


class SideStream:
    """Copies from pinned memory to a GPU on a separate CUDA stream."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self.stream):
            return each_tensor(batch, lambda tensor: tensor.pin_memory().to(self.device, non_blocking=True))

    def finish(self, batch: Batch) -> Batch:
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)  # blocks the device, not the host

        def in_use(tensor: Tensor) -> Tensor:
            # Allocated on one stream and used on another: the allocator must not reuse it before both are done.
            tensor.record_stream(current)
            return tensor

        return each_tensor(batch, in_use)


class InPlace:
    """No copies, because the device is the host."""

    ahead = 0

    def start(self, batch: Batch) -> Batch:
        return batch

    finish = start


def copy_batches(
    batches: Iterator[tuple[Batch, Cursor]], device: torch.device, copies: Copies | None = None
) -> Iterator[tuple[Batch, Cursor]]:
    """Yields the same items in the same order, with the batches on `device`.

    Each cursor stays with its batch, so a checkpoint never counts a batch that is still being copied.
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

"""What a step measured, while the device may still be computing it: reading waits, making does not."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Moment:
    """A moment in the device's own time: when everything asked of it so far is done."""

    def __init__(self, device: torch.device) -> None:
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record(torch.cuda.current_stream(device))
        self.clock = time.perf_counter()

    def seconds_until(self, later: Moment) -> float:
        """Seconds from this moment to a later one; waits for the later one."""
        if self.event is None or later.event is None:
            return later.clock - self.clock
        later.event.synchronize()
        return self.event.elapsed_time(later.event) / 1e3


class OnTheWay:
    """Numbers of the device on their way to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        if numbers.is_cuda:
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
        self.here = Moment(numbers.device)

    def read(self) -> list[float]:
        """The numbers; waits until they are here."""
        if self.here.event is not None:
            self.here.event.synchronize()
        return self.numbers.tolist()

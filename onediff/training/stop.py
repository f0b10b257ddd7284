"""Stop requests: a signal to any rank makes all ranks stop after the same step, with a checkpoint."""

from __future__ import annotations

import signal
import time
from types import FrameType

import torch
import torch.distributed as dist


class Stopped(Exception):
    """The run was asked to stop and did so with a checkpoint; it wants to be resumed (exit code 75)."""


class StopRequest:
    """Remembers SIGINT, SIGTERM and SIGUSR1 (Slurm's warning); `agreed` tells every rank whether any was asked to stop.

    A second Ctrl-C, more than a second after the first, interrupts at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal = 0
        self.asked = 0.0
        for number in self.SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.signal and time.monotonic() - self.asked > 1:
            raise KeyboardInterrupt
        self.signal, self.asked = number, time.monotonic()

    def ignore_more(self) -> None:
        """From here on the process only ends: a second warning must not kill it while it does."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def agreed(self, device: torch.device) -> str | None:
        """The name of a signal that some rank received, the same on all ranks, or None. Collective."""
        highest = torch.tensor(self.signal, device=device)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        number = int(highest)
        return signal.Signals(number).name if number else None

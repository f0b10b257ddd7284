"""Stop requests: a signal to any rank makes all ranks stop after the same step, with a checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop and did so with a checkpoint; it wants to be resumed (exit code 75)."""


class StopRequest:
    """Remembers SIGINT, SIGTERM and SIGUSR1 (Slurm's warning); each step adds up `asked`
    over the ranks, and `agreed` names a signal that any of them received.

    A second Ctrl-C, more than a second after the first, interrupts at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal = 0
        self.received = 0.0
        for number in self.SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.signal and time.monotonic() - self.received > 1:
            raise KeyboardInterrupt
        self.signal, self.received = number, time.monotonic()

    def ignore_more(self) -> None:
        """From here on the process only ends: a second warning must not kill it while it does."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @property
    def asked(self) -> tuple[float, ...]:
        """One number a signal of SIGNALS, 1 where this process received it last: to be added up over the ranks."""
        return tuple(float(self.signal == number) for number in self.SIGNALS)


def agreed(asked: Sequence[float]) -> str | None:
    """The name of a signal that some rank received, from the sums of `asked` over all of them, or None."""
    received = [number for number, ranks in zip(StopRequest.SIGNALS, asked, strict=True) if ranks]
    return max(received).name if received else None


NONE_ASKED = (0.0,) * len(StopRequest.SIGNALS)
"""No process was asked to stop."""

"""Stop requests: a signal to any rank stops all ranks after the same step, with a checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from onediff.errors import UserError

CPU = torch.device("cpu")
BEFORE_FIRST_STEP = "before the first step of this start"


class Stopped(Exception):
    """The run stopped on request, after a checkpoint; it can be resumed (exit code 75)."""


class CutShort(Exception):
    """A stop request ended a measurement early on every rank; the text names the signal."""


class StopRequest:
    """Remembers the first of SIGINT, SIGTERM and SIGUSR1 (Slurm's warning). Each step reduces `asked` over the ranks, and
    `signal_of` names a signal that any of them received.

    A second Ctrl-C, more than a second after the first, interrupts at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal = 0
        self.interrupted: float | None = None  # when Ctrl-C was first pressed
        for number in self.SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # A terminal, make and a launcher may each pass on the same Ctrl-C.
        if number == signal.SIGINT:
            if self.interrupted is not None and time.monotonic() - self.interrupted > 1:
                raise KeyboardInterrupt
            self.interrupted = self.interrupted or time.monotonic()
        # Later signals, such as make's SIGTERM after Ctrl-C, are not the reason for the stop.
        self.signal = self.signal or number

    def ignore_more(self) -> None:
        """Ignores further signals: a second warning must not kill the process as it exits."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def agreed(self, device: torch.device = CPU) -> str | None:
        """The signal that has asked any rank to stop so far, if any. Collective: reduces three numbers."""
        asked = torch.tensor(self.asked, device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return signal_of(asked.tolist())

    def check(self, device: torch.device) -> None:
        """Raises CutShort on every rank if any has been asked to stop. Collective."""
        if (name := self.agreed(device)) is not None:
            raise CutShort(name)

    def check_before_first_step(self) -> None:
        """Raises Stopped on every rank if any has been asked to stop; nothing needs saving yet. Collective."""
        if (name := self.agreed()) is not None:
            raise Stopped(f"{name} {BEFORE_FIRST_STEP}")

    @property
    def asked(self) -> tuple[float, ...]:
        """One number per signal of SIGNALS, 1 for the first that this process received; to be reduced over the ranks."""
        return tuple(float(self.signal == number) for number in self.SIGNALS)


@contextmanager
def during_reads(stop: StopRequest | None) -> Iterator[Callable[[], None]]:
    """Yield a function that any rank may call on its own between reads, in a `raise_on_all_ranks` before the first step.

    A stop request during the block raises Stopped on every rank; this is collective. Any other UserError in the block must
    be raised on every rank.
    """

    def end_reads_if_asked() -> None:
        if stop is not None and stop.signal:
            raise UserError("asked to stop")

    try:
        yield end_reads_if_asked
    except UserError:
        if stop is not None:
            stop.check_before_first_step()
        raise


def no_check(device: torch.device) -> None:
    """Never reports a stop request."""


NAMES = {signal.SIGINT: "Ctrl-C (SIGINT)"}
"""Names of signals for users."""


def signal_of(asked: Sequence[float]) -> str | None:
    """The name of a signal that some rank received, from the maximum of `asked` over all ranks, or None."""
    received = [number for number, ranks in zip(StopRequest.SIGNALS, asked, strict=True) if ranks]
    return NAMES.get(max(received), max(received).name) if received else None


NONE_ASKED = (0.0,) * len(StopRequest.SIGNALS)
"""Never asks to stop: for callers without stop requests."""

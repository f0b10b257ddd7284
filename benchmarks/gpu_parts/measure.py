"""Clocks, memory and the remaining time of a part."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Record = dict[str, Any]


@dataclass
class Setting:
    """The device, sizes and deadline of a part."""

    device: torch.device
    dry: bool
    """tiny sizes, to see that all parts run"""
    deadline: float
    """on `time.monotonic`"""

    @property
    def left(self) -> float:
        """Remaining seconds of the part."""
        return self.deadline - time.monotonic()

    @property
    def dtype(self) -> torch.dtype:
        """The precision that models compute in."""
        return torch.float32 if self.dry else torch.bfloat16

    def attempt(self, case: Record, work: Callable[[], Record]) -> Iterator[Record]:
        """One record: `case` with what `work` returns, or with the reason why there is no figure."""
        if self.left < 0:
            yield case | {"not_measured": "no time left"}
            return
        try:
            yield case | work()
        except Exception as error:  # a library may fail in any way on an unknown machine; continue with the other cases
            words = " ".join(str(error).split()) or type(error).__name__
            yield case | {"not_measured": f"{type(error).__name__}: {words[:300]}"}
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any], budget: float, warm_up: int = 2, most: int = 50) -> list[float]:
        """Seconds of each of at least three calls of `work`, for about `budget` seconds."""
        for _ in range(warm_up):
            work()
        self.wait()
        taken: list[float] = []
        began = time.monotonic()
        while len(taken) < 3 or (len(taken) < most and time.monotonic() - began < min(budget, self.left)):
            start = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - start)
        return taken

    def median(self, work: Callable[[], Any], budget: float = 1.0) -> float:
        """Median seconds of a call of `work`; short ones are repeated within one measurement."""
        once = min(self.seconds(work, 0.0))
        # Waiting for the device costs about 10 µs; keep that small compared with the measured time.
        repeats = max(1, min(100, int(0.002 / max(once, 1e-6))))

        def several() -> None:
            for _ in range(repeats):
                work()

        return statistics.median(self.seconds(several, budget, warm_up=1)) / repeats

    def wait(self) -> None:
        """Waits until the device has finished all submitted work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_gib(self, reset: bool = False) -> float | None:
        """Peak device memory since the last reset in GiB; None on the host."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        if reset:
            torch.cuda.reset_peak_memory_stats(self.device)
        return peak

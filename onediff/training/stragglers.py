"""Speed and skipped samples of all ranks, gathered every few steps."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from onediff.parallel.agreement import gathered
from onediff.ranks import Ranks
from onediff.runs.section import compared, stepped
from onediff.tracking.timing import memory_peaks, step_times, stragglers
from onediff.training.probes import Probes, slowness

WINDOW = 20
"""Steps between gatherings, rounded up to a multiple of `training.log_every`."""


@dataclass
class Seconds:
    """Times of one rank's steps since the last gathering, one number per step."""

    step: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    """for data"""
    computing: list[float] = field(default_factory=list)
    """processor time or, on a GPU, the device's time including its waits"""


class StragglerMonitor:
    """Step-time percentiles, the slowest rank, memory peaks, skipped samples by kind and cut answers by data set.

    A step takes the same time on every rank, since all wait for the slowest. Ranks are therefore compared by their own work:
    their wait for data and their processor time or, on GPUs, the times of identical probes.
    """

    def __init__(
        self,
        log_every: int,
        device: torch.device,
        *,
        loads_itself: bool,
        counts_skipped: bool,
        ranks: Ranks | None = None,
    ) -> None:
        self.every = log_every * -(-WINDOW // log_every)
        self.device = device
        self.loads_itself = loads_itself
        self.counts_skipped = counts_skipped
        self.before: Counter[str] = Counter()
        """Samples skipped by kind, over all ranks, before this start of the phase."""
        self.cut_before: Counter[str] = Counter()
        """Answers cut by data set, over all ranks, before this start of the phase."""
        self.seconds = Seconds()
        self.processor = time.process_time()
        self.probe = Probes(device, ranks) if device.type == "cuda" and ranks is not None else None

    def after(
        self,
        step: int,
        steps: int,
        seconds: float,
        waiting: float,
        skipped: Mapping[str, int],
        cut: Mapping[str, int] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Records one step; at each gathering, and at the last step, returns the metrics since the previous gathering.

        Collective at those steps: about 1 ms. `skipped` and `cut` count this rank's skipped samples and cut answers since
        the phase started or was resumed.
        """
        stepped(step)
        before, self.processor = self.processor, time.process_time()
        computing = seconds - waiting if self.probe else self.processor - before
        self.seconds.step.append(seconds)
        # Without worker processes, waiting for data is work of this process, and already in its processor time.
        self.seconds.waiting.append(0.0 if self.loads_itself else waiting)
        self.seconds.computing.append(computing)
        if step % self.every and step != steps:
            return {}
        mine, self.seconds = self.seconds, Seconds()
        ranks = gathered(
            {
                "waiting": float(np.mean(mine.waiting)),
                "computing": float(np.mean(mine.computing)),
                "probe": self.probe.seconds() if self.probe else None,
                "memory": memory_gib(self.device),
                **self.counts(skipped, cut),
            }
        )
        answers = added(ranks, "cut", self.cut_before)
        slowest = stragglers(own_work(ranks))
        if self.probe is not None and slowest:  # processor time alone is too weak to act on
            rank = int(slowest["straggler/rank"])
            compared(step, rank, slowest["straggler/lag_share"], what_is_slow(ranks, rank))
        return {
            **step_times(mine.step),
            **slowest,
            **memory_peaks([rank["memory"] for rank in ranks]),
            **{f"skipped/{kind}": float(count) for kind, count in added(ranks, "skipped", self.before).items()},
            "cut_answers": float(answers.total()),
            **{f"cut_answers/{name}": float(count) for name, count in answers.items()},
        }

    def counts(self, skipped: Mapping[str, int], cut: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """This rank's skipped samples by kind and cut answers by data set, for `added`."""
        counts = self.counts_skipped
        return {"skipped": dict(skipped) if counts else {}, "cut": dict(cut) if counts else {}}


def added(ranks: Sequence[Mapping[str, Any]], name: str, before: Counter[str]) -> Counter[str]:
    """`before` plus the counts `name` of all ranks."""
    return sum((Counter(rank[name]) for rank in ranks), before.copy())


def own_work(ranks: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return each rank's seconds of own work per step; with probes, the typical time scaled by the rank's slowness."""
    probes = [rank["probe"] for rank in ranks if rank["probe"] is not None]
    if len(probes) < len(ranks):
        return [rank["waiting"] + rank["computing"] for rank in ranks]
    typical = float(np.median([rank["computing"] for rank in ranks]))
    return [rank["waiting"] + typical * times for rank, (times, _) in zip(ranks, slowness(probes), strict=True)]


def what_is_slow(ranks: Sequence[Mapping[str, Any]], slowest: int) -> str:
    """Return what slows down the slowest of `ranks`: `data`, or its worst probe."""
    times, probe = slowness([rank["probe"] for rank in ranks])[slowest]
    typical = float(np.median([rank["computing"] for rank in ranks]))
    waiting = ranks[slowest]["waiting"] - float(np.median([rank["waiting"] for rank in ranks]))
    return "data" if waiting > typical * (times - 1) else probe


def memory_gib(device: torch.device) -> float:
    """This rank's peak memory in GiB: torch's allocations on its GPU or, without one, that of its process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

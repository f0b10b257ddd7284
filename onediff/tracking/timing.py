"""Metrics of a run's pace: percentiles of step times, the slowest rank, and peak memory per rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def step_times(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile and maximum of the seconds that recent steps took."""
    if not len(seconds):
        return {}
    p50, p90, p99 = np.percentile(seconds, (50, 90, 99))
    return {"step_seconds/p50": p50, "step_seconds/p90": p90, "step_seconds/p99": p99, "step_seconds/max": max(seconds)}


def stragglers(seconds: Sequence[float]) -> dict[str, float]:
    """The slowest rank and how far it is behind the median rank.

    `seconds[rank]` is the rank's own work in a step (or a mean over steps) without its wait for others, because the whole
    step takes equally long on every rank.
    """
    if len(seconds) < 2:
        return {}
    slowest, median = int(np.argmax(seconds)), float(np.median(seconds))
    lag = float(seconds[slowest]) - median
    return {
        "straggler/rank": slowest,
        "straggler/lag_seconds": lag,
        "straggler/lag_share": lag / median if median > 0 else 0.0,
    }


def memory_peaks(gibibytes: Sequence[float]) -> dict[str, float]:
    """Peak memory of every rank and the largest of them, in GiB, from `gibibytes[rank]`."""
    ranks = {f"memory/peak_gib/rank_{rank:04d}": float(peak) for rank, peak in enumerate(gibibytes)}
    return {"memory/peak_gib": float(max(gibibytes)), **ranks} if ranks else {}

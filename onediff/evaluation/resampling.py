"""How sure a score is: bootstrap intervals, and whether two systems differ on the same pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from onediff.evaluation.statistics import corpus_scores

CHUNK = 100  # resamples at a time, which bounds the memory at 100 × pairs numbers


class Difference(NamedTuple):
    """One metric of ours beside another system's on the same pairs; `p` is two-sided."""

    ours: float
    other: float
    difference: float
    p: float


def intervals(rows: np.ndarray, resamples: int, seed: int, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over pairs: rows [pairs, columns] → metric → (low, high).

    Pairs are drawn with replacement and the corpus score is recomputed from summed rows. Document frequencies of
    CIDEr stay those of all references.
    """
    rng = np.random.default_rng(seed)
    pairs = len(rows)
    found: dict[str, list[np.ndarray]] = {}
    for size in _chunks(resamples):
        # How often each pair is drawn: [resamples, pairs].
        weights = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=size)
        for metric, values in corpus_scores(weights @ rows).items():
            found.setdefault(metric, []).append(values)
    tails = [50 * (1 - level), 50 * (1 + level)]
    return {
        metric: (float(low), float(high))
        for metric, values in found.items()
        if len(values) == len(next(iter(found.values())))
        for low, high in [np.percentile(np.concatenate(values), tails)]
    }


def differences(rows: np.ndarray, other: np.ndarray, resamples: int, seed: int) -> dict[str, Difference]:
    """Paired approximate randomisation: in each trial the two answers of every pair change sides with a coin.

    p is how often a difference at least as large as the seen one arises so, counting the seen one (Noreen, 1989).
    """
    rng = np.random.default_rng(seed)
    one, two = corpus_scores(rows.sum(0)), corpus_scores(other.sum(0))
    seen = {metric: float(one[metric] - two[metric]) for metric in one if metric in two}
    beyond = dict.fromkeys(seen, 1)
    exchange = other - rows
    for size in _chunks(resamples):
        moved = rng.integers(0, 2, size=(size, len(rows)), dtype=np.int8).astype(float) @ exchange
        left, right = corpus_scores(rows.sum(0) + moved), corpus_scores(other.sum(0) - moved)
        for metric, difference in seen.items():
            # A hair of slack: sums taken in another order differ in the last digit.
            beyond[metric] += int(np.sum(np.abs(left[metric] - right[metric]) >= abs(difference) - 1e-12))
    return {
        metric: Difference(float(one[metric]), float(two[metric]), difference, beyond[metric] / (resamples + 1))
        for metric, difference in seen.items()
    }


def _chunks(resamples: int) -> Iterator[int]:
    for start in range(0, resamples, CHUNK):
        yield min(CHUNK, resamples - start)

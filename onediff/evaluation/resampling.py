"""How certain a score is: bootstrap intervals, and whether two systems differ on the same pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from onediff.evaluation.metrics import Rows, scores_of
from onediff.evaluation.metrics.metric import S

CHUNK = 100  # resamples at a time, which limits memory to 100 × pairs numbers


class Difference(NamedTuple):
    """One of our scores and another system's on the same pairs; `p` is two-sided, None without resamples."""

    ours: float
    other: float
    difference: float
    p: float | None


def intervals(rows: Mapping[S, np.ndarray], resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap over pairs: metric → [pairs, columns] → name → (low, high).

    Pairs are drawn with replacement and the corpus score is recomputed from summed rows. CIDEr's document frequencies
    stay those of all references. A resample in which a score is undefined is left out of that score's interval.
    """
    rng = np.random.default_rng(seed)
    pairs = len(next(iter(rows.values())))
    found: dict[str, list[np.ndarray]] = {}
    for size in _chunks(resamples):
        # How often each pair is drawn: [resamples, pairs].
        weights = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=size)
        for name, values in scores_of({metric: weights @ part for metric, part in rows.items()}).items():
            found.setdefault(name, []).append(values[~np.isnan(values)])
    return {
        name: (float(low), float(high))
        for name, parts in found.items()
        if len(values := np.concatenate(parts))
        for low, high in [np.percentile(values, [2.5, 97.5])]
    }


def differences(rows: Rows, other: Rows, resamples: int, seed: int) -> dict[str, Difference]:
    """Paired approximate randomisation: in each trial, a coin decides for every pair whether its answers swap sides.

    p is how often a difference at least as large as the observed one results, counting that one (Noreen, 1989).
    """
    rng = np.random.default_rng(seed)
    both = [metric for metric in rows if metric in other]
    one, two = (scores_of({metric: side[metric].sum(0) for metric in both}) for side in (rows, other))
    seen = {name: float(one[name] - two[name]) for name in one if not np.isnan(one[name] - two[name])}
    beyond = dict.fromkeys(seen, 1)
    pairs = len(next(iter(rows.values())))
    for size in _chunks(resamples):
        coins = rng.integers(0, 2, size=(size, pairs), dtype=np.int8).astype(float)
        moved = {metric: coins @ (other[metric] - rows[metric]) for metric in both}
        left = scores_of({metric: rows[metric].sum(0) + moved[metric] for metric in both})
        right = scores_of({metric: other[metric].sum(0) - moved[metric] for metric in both})
        for name, difference in seen.items():
            # Tolerance: sums in another order differ in the last digit.
            beyond[name] += int(np.sum(np.abs(left[name] - right[name]) >= abs(difference) - 1e-12))
    return {
        name: Difference(
            float(one[name]), float(two[name]), difference, beyond[name] / (resamples + 1) if resamples else None
        )
        for name, difference in seen.items()
    }


def _chunks(resamples: int) -> Iterator[int]:
    for start in range(0, resamples, CHUNK):
        yield min(CHUNK, resamples - start)

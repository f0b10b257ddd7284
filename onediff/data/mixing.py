"""The order of sources in a mix, with exact proportions in every window, not only on average."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

LONGEST_PERIOD = 1_000_000


class Mix:
    """A periodic sequence of sources in which each source takes its weight's share of every window.

    The j-th turn of source k is due at time (j + ½) / share; sorting the due times spreads each source evenly. Lane l
    reads the sequence from offset l, so both a global batch (one step, all lanes) and a lane (all steps) are windows of
    it. Each holds every source in proportion, to within one or two samples per source.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        assert weights and all(weight > 0 for weight in weights)
        turns = _whole_numbers(weights)
        self.period = sum(turns)
        due = np.concatenate([(np.arange(n) + 0.5) / n for n in turns])
        sources = np.concatenate([np.full(n, source) for source, n in enumerate(turns)])
        self._sequence = sources[np.lexsort((sources, due))].astype(np.int32)
        # The turns of each source within a period; memory does not grow with the number of sources.
        self._turns = [np.flatnonzero(self._sequence == source).astype(np.int32) for source in range(len(turns))]

    def at(self, lane: int, index: int) -> tuple[int, int]:
        """The source of sample `index` of `lane`, and the number of earlier samples of that source in the lane."""
        source = int(self._sequence[(lane + index) % self.period])
        return source, self.count(source, lane, index)

    def count(self, source: int, lane: int, index: int) -> int:
        """Samples of `source` among the first `index` samples of `lane`."""
        return self._count(source, lane + index) - self._count(source, lane)

    def _count(self, source: int, end: int) -> int:
        """Turns of `source` among the first `end` entries of the sequence."""
        periods, rest = divmod(end, self.period)
        turns = self._turns[source]
        return periods * len(turns) + int(turns.searchsorted(np.int32(rest)))


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    """The smallest integers in the proportions of `weights`, rounded if their sum would exceed `LONGEST_PERIOD`."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(share.denominator for share in exact))
    whole = [int(share * scale) for share in exact]
    common = int(np.gcd.reduce(whole))
    whole = [n // common for n in whole]
    total = sum(whole)
    if total > LONGEST_PERIOD:
        whole = [max(1, round(n * LONGEST_PERIOD / total)) for n in whole]
    return whole

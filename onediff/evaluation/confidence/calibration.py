"""Maps mean token log-probabilities to the share of right captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 10
"""The smallest number of right captions, and of wrong ones, that a calibration needs."""
BLOCKS = 20
FOLDS = 5
BINS = 10


@dataclass(frozen=True)
class Calibration:
    """A rising piecewise linear curve through knots, constant beyond them."""

    log_probabilities: NDArray[np.float64]
    """`[knots]`, rising."""
    shares: NDArray[np.float64]
    """`[knots]`: the share of right captions."""

    @classmethod
    def of(cls, log_probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
        """Isotonic regression: blocks of neighbours, at most 20 of equal size, pooled where the share does not rise.

        A share is (right + 1) / (pairs + 2), so it is never 0 or 1.
        """
        order = np.argsort(log_probabilities, kind="stable")
        blocks: list[list[float]] = []  # sum of log-probabilities, right, pairs
        for few in np.array_split(order, max(1, min(BLOCKS, len(order) // FEWEST))):
            blocks.append([float(log_probabilities[few].sum()), float(right[few].sum()), float(len(few))])
            while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
                last = blocks.pop()
                blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
        sums, rights, pairs = np.array(blocks).T
        return cls(sums / pairs, np.maximum.accumulate((rights + 1) / (pairs + 2)))

    def confidence(self, log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of right captions at these mean log-probabilities."""
        return np.interp(log_probabilities, self.log_probabilities, self.shares)


def reliability(log_probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`[bins, 3]`: mean confidence, share right and number of pairs, in bins of equal size, the least confident first.

    Each fifth of the pairs gets its confidence from a calibration on the others, so no pair is judged by itself.
    """
    fold = np.random.default_rng(0).permutation(len(right)) % FOLDS
    confidence = np.empty(len(right))
    for number in range(FOLDS):
        others = fold != number
        confidence[~others] = Calibration.of(log_probabilities[others], right[others]).confidence(
            log_probabilities[~others]
        )
    bins = np.array_split(np.argsort(confidence, kind="stable"), min(BINS, len(right) // 5 or 1))
    return np.array([[confidence[one].mean(), right[one].mean(), len(one)] for one in bins])


def calibration_error(bins: NDArray[np.float64]) -> float:
    """Expected calibration error of `reliability`: the mean distance between confidence and share right."""
    confidence, right, pairs = bins.T
    return float((abs(confidence - right) * pairs).sum() / pairs.sum())

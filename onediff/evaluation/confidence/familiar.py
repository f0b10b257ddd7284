"""Whether images are like those that a model was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARE = 0.01
"""The largest share, on average, of pairs like the held-out ones that is called unfamiliar."""


@dataclass(frozen=True)
class Familiar:
    """A Gaussian over tower features, and the distance of held-out images from its centre."""

    mean: NDArray[np.float32]
    """`[width]`"""
    precision: NDArray[np.float32]
    """`[width, width]`, the inverse of the shrunk covariance."""
    limit: float
    """Largest distance of a familiar image."""

    @classmethod
    def of(cls, trained: NDArray[np.float32], held_out: NDArray[np.float32], share: float = SHARE) -> Familiar:
        """From features of training images `[images, width]` and of held-out pairs `[pairs, 2, width]`.

        The limit is the conformal quantile: on average, at most `share` of new pairs like the held-out ones exceed it, or
        1 in (pairs + 1) if there are too few pairs for `share`.
        """
        mean = trained.mean(0, dtype=np.float64)
        precision = np.linalg.inv(shrunk_covariance(trained - mean))
        unlimited = cls(mean.astype(np.float32), precision.astype(np.float32), math.inf)
        distances = np.sort(unlimited.distances(held_out).max(1))
        place = min(math.ceil((len(distances) + 1) * (1 - share)), len(distances)) - 1
        return cls(unlimited.mean, unlimited.precision, float(distances[place]))

    def distances(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mahalanobis distance of features `[…, width]` from the centre, `[…]`."""
        away = features.astype(np.float64) - self.mean
        return np.sqrt(np.einsum("...i,ij,...j->...", away, self.precision, away).clip(0))


def shrunk_covariance(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Oracle-approximating shrinkage of the covariance of `[images, width]` towards a multiple of the identity
    (Chen et al. 2010, arXiv 0907.4698): invertible for any number of images."""
    images, width = centred.shape
    found = centred.T @ centred / images
    scale, squares = np.trace(found) / width, (found**2).sum()
    above = (1 - 2 / width) * squares + (scale * width) ** 2
    below = (images + 1 - 2 / width) * (squares - scale**2 * width)
    share = 1.0 if below <= 0 else min(1.0, above / below)
    return (1 - share) * found + (share * scale + 1e-12) * np.eye(width)

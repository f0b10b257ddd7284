"""`fit: native`: an image in its own shape, as patches (SigLIP 2's NaFlex, arXiv 2502.14786).

The image is scaled up or down to as many patches as allowed. Its sides become whole numbers of patches, which changes its
aspect ratio by less than one patch. Images of the same size get the same shape.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onediff.data.geometry import Plane, Size


@lru_cache(maxsize=4096)
def native_shape(size: Size, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches, by the same search as `Siglip2ImageProcessor`, to the last bit."""

    def patches(scale: float, length: int) -> int:
        return max(1, math.ceil(length * scale / patch))

    width, height = size
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        if patches(scale, height) * patches(scale, width) <= most:
            low = scale
        else:
            high = scale
    return patches(low, height), patches(low, width)


@lru_cache(maxsize=1024)
def native_plane(shape: tuple[int, int]) -> Plane:
    """The tokens of an image of this shape: its patches in reading order."""
    row, column = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    corners = np.stack([column, row, column + 1, row + 1], 1) / np.array([shape[1], shape[0]] * 2)
    patches = shape[0] * shape[1]
    return Plane(patches, patches, np.arange(patches), corners.astype(np.float32), shape)


def patched(pixels: NDArray[np.uint8], patch: int) -> NDArray[np.uint8]:
    """Cuts `[rows · patch, columns · patch, 3]` into `[rows · columns, patch · patch · 3]`."""
    rows, columns = (length // patch for length in pixels.shape[:2])
    return pixels.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


def unpatched(patches: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The inverse of `patched`: an image `[height, width, 3]`."""
    side = math.isqrt(patches.shape[1] // 3)
    return patches.reshape(*shape, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(shape[0] * side, shape[1] * side, 3)

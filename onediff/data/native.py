"""`fit: native`: an image in its own shape, as patches (SigLIP 2's NaFlex, arXiv 2502.14786).

The image is scaled up or down to as many patches as allowed. Its sides become whole numbers of patches, which changes its
aspect ratio by less than one patch. Images of the same size get the same shape.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def patched(pixels: NDArray[np.uint8], patch: int) -> NDArray[np.uint8]:
    """Cuts `[rows · patch, columns · patch, 3]` into `[rows · columns, patch · patch · 3]`."""
    rows, columns = (length // patch for length in pixels.shape[:2])
    return pixels.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


def unpatched(patches: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The inverse of `patched`: an image `[height, width, 3]`."""
    side = math.isqrt(patches.shape[1] // 3)
    return patches.reshape(*shape, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(shape[0] * side, shape[1] * side, 3)

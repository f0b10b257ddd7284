"""`fit: tiles`: an image as an overview and tiles of the tower's size, LLaVA-NeXT's AnyRes
(https://llava-vl.github.io/blog/2024-01-30-llava-next/).

The overview is the whole image, squashed to the tower's square. For the tiles, the image is scaled with its aspect ratio
kept and centred on a black canvas, which is cut into a grid. The rule of `LlavaNextImageProcessor` chooses the grid from the
image size, and the pixels equal that processor's. Both images of a pair get the same grid. An image that fits into one tile
has only an overview. Tokens that saw only black are dropped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onediff.hub.planes_onediff import Grid


def laid_on_canvas(scaled: NDArray[np.uint8], grid: Grid, left: int, top: int, side: int) -> NDArray[np.uint8]:
    """Cuts an image `[height, width, 3]`, scaled to its place, into tiles `[tiles, 3, side, side]` in reading order."""
    (columns, rows), (height, width) = grid, scaled.shape[:2]
    canvas = np.zeros((rows * side, columns * side, 3), np.uint8)
    canvas[top : top + height, left : left + width] = scaled
    tiles = canvas.reshape(rows, side, columns, side, 3)
    return tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)

"""`fit: tiles`: an image as an overview and tiles of the tower's size, LLaVA-NeXT's AnyRes
(https://llava-vl.github.io/blog/2024-01-30-llava-next/).

The overview is the whole image, both sides scaled to the tower's. The tiles cut a canvas of some columns and rows, into
which the image is scaled in its own aspect, amid black. Which columns and rows follows from its size, by the rule of
`LlavaNextImageProcessor`, whose pixels these are; both images of a pair get the same. An image that fits into one tile
is seen in the overview alone. Tokens that saw nothing but black are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onediff.data.geometry import Plane, Size


class Grid(NamedTuple):
    """Tiles of a canvas."""

    columns: int
    rows: int


class TilePlace(NamedTuple):
    """Where the image lies in its canvas, pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def size(self) -> Size:
        """Width and height."""
        return self.width, self.height


@lru_cache
def grids(most: int) -> tuple[Grid, ...]:
    """All grids of up to `most` tiles."""
    return tuple(Grid(columns, rows) for rows in range(1, most + 1) for columns in range(1, most // rows + 1))


def best_grid(sizes: Sequence[Size], side: int, most: int) -> Grid:
    """The grid in which these images together keep the most pixels, and of those the one with the least black.

    As `select_best_resolution` of transformers for one image. Scaling up adds nothing.
    """

    def kept(grid: Grid) -> tuple[int, int]:
        total = 0
        for width, height in sizes:
            scale = min(grid.columns * side / width, grid.rows * side / height)
            total += min(int(width * scale) * int(height * scale), width * height)
        return total, total - len(sizes) * grid.columns * grid.rows * side**2

    return max(grids(most), key=kept)


def place_in(grid: Grid, size: Size, side: int) -> TilePlace:
    """Where an image of `size` lies, as large as it can be, in the middle (`get_patch_output_size`)."""
    across, down = grid.columns * side, grid.rows * side
    by_width, by_height = across / size[0], down / size[1]
    if by_width < by_height:
        width, height = across, min(math.ceil(size[1] * by_width), down)
    else:
        width, height = min(math.ceil(size[0] * by_height), across), down
    return TilePlace((across - width) // 2, (down - height) // 2, width, height)


@lru_cache(maxsize=256)
def tile_plane(grid: Grid, size: Size, side: int, patch: int) -> Plane:
    """The tokens of the overview in reading order, then those of all tiles, in the reading order of the canvas."""
    cells = side // patch
    overview = _cells(np.arange(cells) * patch, patch) / side
    chosen, boxes = [np.arange(cells**2)], [_crossed(overview, overview)]
    if grid != (1, 1):
        place = place_in(grid, size, side)
        edges = [(np.arange(count)[:, None] * side + np.arange(cells) * patch).ravel() for count in grid]
        across = (_cells(edges[0], patch) - place.left) / place.width
        down = (_cells(edges[1], patch) - place.top) / place.height
        row, column = np.divmod(np.arange(grid.rows * cells * grid.columns * cells), grid.columns * cells)
        tile = row // cells * grid.columns + column // cells
        token = (1 + tile) * cells**2 + row % cells * cells + column % cells
        box = _crossed(across, down)
        holds_image = (box[:, 2:] > 0).all(1) & (box[:, :2] < 1).all(1)
        chosen.append(token[holds_image])
        boxes.append(box[holds_image].clip(0, 1))
    views = 1 if grid == (1, 1) else 1 + grid.columns * grid.rows
    return Plane(views, views * cells**2, np.concatenate(chosen), np.concatenate(boxes).astype(np.float32))


def _cells(starts: NDArray[np.int64], patch: int) -> NDArray[np.float64]:
    """`[cells, 2]`: where each begins and ends."""
    return np.stack([starts, starts + patch], 1).astype(np.float64)


def _crossed(across: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[cells, 4]` boxes in reading order of all columns and rows."""
    left, right = (np.tile(edge, len(down)) for edge in across.T)
    top, bottom = (np.repeat(edge, len(across)) for edge in down.T)
    return np.stack([left, top, right, bottom], 1)


def laid_on_canvas(scaled: NDArray[np.uint8], grid: Grid, place: TilePlace, side: int) -> NDArray[np.uint8]:
    """The tiles `[tiles, 3, side, side]`, in reading order, of an image `[height, width, 3]` scaled to its place."""
    canvas = np.zeros((grid.rows * side, grid.columns * side, 3), np.uint8)
    canvas[place.top : place.top + place.height, place.left : place.left + place.width] = scaled
    tiles = canvas.reshape(grid.rows, side, grid.columns, side, 3)
    return tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)

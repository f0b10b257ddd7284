"""`fit: tiles`: an image as an overview and tiles of the tower's size, LLaVA-NeXT's AnyRes
(https://llava-vl.github.io/blog/2024-01-30-llava-next/).

The overview is the whole image, squashed to the tower's square. For the tiles, the image is scaled with its aspect ratio
kept and centred on a black canvas, which is cut into a grid. The rule of `LlavaNextImageProcessor` chooses the grid from the
image size, and the pixels equal that processor's. Both images of a pair get the same grid. An image that fits into one tile
has only an overview. Tokens that saw only black are dropped.
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
    """The tiles of a canvas."""

    columns: int
    rows: int


class TilePlace(NamedTuple):
    """The place of an image on its canvas, in pixels."""

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
    """The grid that keeps the most pixels of these images together; ties go to the grid with the least black.

    For one image, equals `select_best_resolution` of transformers. Upscaling does not count as more pixels.
    """

    def kept(grid: Grid) -> tuple[int, int]:
        total = 0
        for width, height in sizes:
            scale = min(grid.columns * side / width, grid.rows * side / height)
            total += min(int(width * scale) * int(height * scale), width * height)
        return total, total - len(sizes) * grid.columns * grid.rows * side**2

    return max(grids(most), key=kept)


def place_in(grid: Grid, size: Size, side: int) -> TilePlace:
    """The place of an image of `size`, as large as possible and centred (transformers' `get_patch_output_size`)."""
    across, down = grid.columns * side, grid.rows * side
    by_width, by_height = across / size[0], down / size[1]
    if by_width < by_height:
        width, height = across, min(math.ceil(size[1] * by_width), down)
    else:
        width, height = min(math.ceil(size[0] * by_height), across), down
    return TilePlace((across - width) // 2, (down - height) // 2, width, height)


@lru_cache(maxsize=256)
def tile_plane(grid: Grid, size: Size, side: int, patch: int) -> Plane:
    """The tokens of the overview, then those of the tiles, each in reading order of the whole image."""
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
    """`[cells, 2]`: the start and end of each cell."""
    return np.stack([starts, starts + patch], 1).astype(np.float64)


def _crossed(across: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[cells, 4]`: the boxes of all columns and rows, in reading order."""
    left, right = (np.tile(edge, len(down)) for edge in across.T)
    top, bottom = (np.repeat(edge, len(across)) for edge in down.T)
    return np.stack([left, top, right, bottom], 1)


def laid_on_canvas(scaled: NDArray[np.uint8], grid: Grid, place: TilePlace, side: int) -> NDArray[np.uint8]:
    """Cuts an image `[height, width, 3]`, scaled to its place, into tiles `[tiles, 3, side, side]` in reading order."""
    canvas = np.zeros((grid.rows * side, grid.columns * side, 3), np.uint8)
    canvas[place.top : place.top + place.height, place.left : place.left + place.width] = scaled
    tiles = canvas.reshape(grid.rows, side, grid.columns, side, 3)
    return tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)

"""The layout of image tokens, from which the processor counts them and the model places them.

An image's layout depends on its size and on the image settings of the export (`config.json`, `image`):

    crop, pad, squash   one view for any size
    tiles               an overview and the tiles of a grid, LLaVA-NeXT's AnyRes; both images of a pair get the same grid
    native              patches in the image's own shape, SigLIP 2's NaFlex

Training lays out its images with the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Size = tuple[int, int]
"""Width and height, pixels."""
Grid = tuple[int, int]
"""Columns and rows of tiles."""


class OneDiffPlane(NamedTuple):
    """The layout of one image's tokens."""

    inputs: int
    """Its part of the tower's input: views of the tower's size, or patches."""
    given: int
    """Tokens that the tower outputs for those inputs."""
    chosen: np.ndarray
    """`[tokens]`: the tower's tokens that are kept, in reading order; the others saw only padding."""
    boxes: np.ndarray | None
    """`[tokens, 4]` fp32: the left, top, right and bottom edges of what each kept token saw, as fractions of the image; None
    for a square grid of tokens."""
    shape: tuple[int, int] | None = None
    """Rows and columns of patches, with `native`."""

    def centres(self) -> np.ndarray:
        """`[tokens, 2]` fp32: x and y of the centre of what each kept token saw, as fractions of the image."""
        if self.boxes is not None:
            return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        side = math.isqrt(self.given)
        row, column = np.divmod(np.arange(self.given), side)
        return (np.stack([column, row], 1).astype(np.float32) + 0.5) / side


def planes_of(settings: dict[str, Any], sizes: Sequence[Sequence[int]]) -> list[OneDiffPlane]:
    """The layout of each image; `sizes` are widths and heights, with pairs adjacent."""
    images = [(width, height) for width, height in sizes]
    if settings["fit"] == "tiles":
        side, patch, most = settings["size"], settings["patch"], settings["max_tiles"]
        of_pairs = [best_grid(images[first : first + 2], side, most) for first in range(0, len(images), 2)]
        return [tile_plane(of_pairs[number // 2], size, side, patch) for number, size in enumerate(images)]
    if settings["fit"] == "native":
        return [native_plane(native_shape(size, settings["patch"], settings["max_patches"])) for size in images]
    tokens = settings["tokens"]
    return [OneDiffPlane(1, tokens, np.arange(tokens), None)] * len(sizes)


@lru_cache
def grids(most: int) -> list[Grid]:
    """All grids of up to `most` tiles."""
    return [(columns, rows) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]


def best_grid(sizes: Sequence[Size], side: int, most: int) -> Grid:
    """The grid that keeps the most pixels of these images together; ties go to the grid with the least black.

    For one image, equals `select_best_resolution` of transformers. Upscaling does not count as more pixels.
    """

    def kept(grid: Grid) -> tuple[int, int]:
        total = 0
        for width, height in sizes:
            scale = min(grid[0] * side / width, grid[1] * side / height)
            total += min(int(width * scale) * int(height * scale), width * height)
        return total, total - len(sizes) * grid[0] * grid[1] * side**2

    return max(grids(most), key=kept)


def place_in(grid: Grid, size: Size, side: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of an image on the canvas of a grid, as large as possible and centred.

    The size equals that of transformers' `get_patch_output_size`.
    """
    across, down = grid[0] * side, grid[1] * side
    by_width, by_height = across / size[0], down / size[1]
    if by_width < by_height:
        width, height = across, min(math.ceil(size[1] * by_width), down)
    else:
        width, height = min(math.ceil(size[0] * by_height), across), down
    return (across - width) // 2, (down - height) // 2, width, height


@lru_cache(maxsize=256)
def tile_plane(grid: Grid, size: Size, side: int, patch: int) -> OneDiffPlane:
    """The tokens of the overview, then those of the tiles, each in reading order of the whole image."""
    cells = side // patch
    starts = np.arange(cells) * patch
    edges = starts / side, (starts + patch) / side
    chosen, boxes = [np.arange(cells**2)], [crossed(*edges, *edges)]
    if grid != (1, 1):
        left, top, width, height = place_in(grid, size, side)
        across, down = ((np.arange(count)[:, None] * side + np.arange(cells) * patch).ravel() for count in grid)
        x, y = (across - left) / width, (down - top) / height
        row, column = np.divmod(np.arange(grid[1] * cells * grid[0] * cells), grid[0] * cells)
        tile = row // cells * grid[0] + column // cells
        token = (1 + tile) * cells**2 + row % cells * cells + column % cells
        box = crossed(x, (across + patch - left) / width, y, (down + patch - top) / height)
        holds_image = (box[:, 2:] > 0).all(1) & (box[:, :2] < 1).all(1)
        chosen.append(token[holds_image])
        boxes.append(box[holds_image].clip(0, 1))
    views = 1 if grid == (1, 1) else 1 + grid[0] * grid[1]
    return OneDiffPlane(views, views * cells**2, np.concatenate(chosen), np.concatenate(boxes).astype(np.float32))


def crossed(left: np.ndarray, right: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """`[cells, 4]`: the left, top, right and bottom edges of all cells, in reading order."""
    columns, rows = len(left), len(top)
    return np.stack([np.tile(left, rows), np.repeat(top, columns), np.tile(right, rows), np.repeat(bottom, columns)], 1)


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
def native_plane(shape: tuple[int, int]) -> OneDiffPlane:
    """The tokens of an image of this shape: its patches in reading order."""
    row, column = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    boxes = np.stack([column, row, column + 1, row + 1], 1) / np.array([shape[1], shape[0]] * 2)
    return OneDiffPlane(len(row), len(row), np.arange(len(row)), boxes.astype(np.float32), shape)

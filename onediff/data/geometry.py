"""Which part of an image the tower's input covers; used both to make the input and to draw maps over the image."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onediff.config.model import ImageConfig


class Box(NamedTuple):
    """Edges in pixels of the upright image; they may be fractional and may lie outside the image."""

    left: float
    top: float
    right: float
    bottom: float


def crop_place(size: tuple[int, int], config: ImageConfig) -> tuple[tuple[int, int], int, int]:
    """The size that an image of `size` is scaled to before the crop, and the left and top edge of the crop."""
    shorter = config.shorter_side or config.size
    width, height = size
    # The longer side is rounded down, as the image processors do; integer arithmetic avoids any earlier rounding.
    short = min(width, height)
    scaled = (shorter * width // short, shorter * height // short)
    return scaled, (scaled[0] - config.size) // 2, (scaled[1] - config.size) // 2


def pad_place(size: tuple[int, int]) -> tuple[int, int, int]:
    """The side of the square that an image is padded to, and the image's left and top edge in it (expand2square)."""
    side = max(size)
    return side, (side - size[0]) // 2, (side - size[1]) // 2


def input_box(size: tuple[int, int], config: ImageConfig) -> Box:
    """The box of an upright image of `size` (width, height) that the tower's input covers.

    It is smaller than the image with `fit: crop`, and larger with `fit: pad`. The cells of an attention map,
    `[rows, columns]`, divide it evenly.
    """
    width, height = size
    if config.fit == "crop":
        scaled, left, top = crop_place(size, config)
        across, down = width / scaled[0], height / scaled[1]
        return Box(left * across, top * down, (left + config.size) * across, (top + config.size) * down)
    if config.fit == "pad":
        side, left, top = pad_place(size)
        return Box(-left, -top, side - left, side - top)
    return Box(0, 0, width, height)


def seen_box(size: tuple[int, int], config: ImageConfig) -> Box:
    """The part of an upright image of `size` that the model sees."""
    left, top, right, bottom = input_box(size, config)
    return Box(max(0, left), max(0, top), min(size[0], right), min(size[1], bottom))


def over_image(
    places: NDArray[np.float32], size: tuple[int, int], config: ImageConfig
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Lays a map over the model's image tokens, `[rows, columns]`, over an upright image of `size`.

    Returns the values and a mask of what the model saw, both `[height, width]`. Cells on padding are left out; values
    outside the mask mean nothing. `size` may be that of a scaled-down image.
    """
    from PIL import Image

    box, seen = input_box(size, config), seen_box(size, config)
    left, top, right, bottom = (round(edge) for edge in seen)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    rows, columns = places.shape
    across, down = columns / (box.right - box.left), rows / (box.bottom - box.top)
    part = (
        *((seen.left - box.left) * across, (seen.top - box.top) * down),
        *(min(columns, (seen.right - box.left) * across), min(rows, (seen.bottom - box.top) * down)),
    )
    # Cells that saw only padding must not bleed into the image.
    first_column, first_row = int(part[0]), int(part[1])
    places = places[first_row : math.ceil(part[3]), first_column : math.ceil(part[2])]
    part = (part[0] - first_column, part[1] - first_row, part[2] - first_column, part[3] - first_row)
    smooth = Image.fromarray(places).resize((right - left, bottom - top), Image.Resampling.BILINEAR, part)
    values = np.zeros((size[1], size[0]), np.float32)
    was_seen = np.zeros(values.shape, np.bool_)
    values[top:bottom, left:right] = np.asarray(smooth)
    was_seen[top:bottom, left:right] = True
    return values, was_seen

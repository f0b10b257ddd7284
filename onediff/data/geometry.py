"""What the tower's input covers of an image: one arithmetic for making the input and for drawing over the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onediff.config.model import ImageConfig

Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True)
class Plane:
    """One image before the tower."""

    inputs: int
    """How much of `Row.images` is this image's: views of the tower's size, or patches."""
    given: int
    """Tokens that the tower gives for all of that."""
    chosen: NDArray[np.int64]
    """`[tokens]`: which of the tower's tokens for this image go on, in reading order; the others saw only padding."""
    boxes: NDArray[np.float32]
    """`[tokens, 4]`: left, top, right and bottom of what each of them saw, in an image that is 1 wide and 1 high."""
    shape: tuple[int, int] | None = None
    """Rows and columns of patches, where the tower takes images in their own shape."""


class Box(NamedTuple):
    """Edges in the pixels of the upright image; they may be fractions, and lie outside of it."""

    left: float
    top: float
    right: float
    bottom: float


def crop_place(size: tuple[int, int], config: ImageConfig) -> tuple[tuple[int, int], int, int]:
    """Width and height that an image of `size` is scaled to before the cut, and where its middle square begins."""
    shorter = config.shorter_side or config.size
    width, height = size
    # The longer side is cut down to a whole number, as the processors do; in whole numbers nothing is lost before.
    short = min(width, height)
    scaled = (shorter * width // short, shorter * height // short)
    return scaled, (scaled[0] - config.size) // 2, (scaled[1] - config.size) // 2


def pad_place(size: tuple[int, int]) -> tuple[int, int, int]:
    """Side of the square that an image of `size` is padded to, and its left and top edge in it (LLaVA's expand2square)."""
    side = max(size)
    return side, (side - size[0]) // 2, (side - size[1]) // 2


def input_box(size: tuple[int, int], config: ImageConfig) -> Box:
    """What the tower's input covers of an upright image of `size` (width, height): less than the image with
    `fit: crop`, more than it with `fit: pad`. The places of an attention map, `[rows, columns]`, share it out evenly."""
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
    """A map over the model's places, `[rows, columns]`, laid over an upright image of `size`: values and what the model
    saw, both `[height, width]`. What lies on padding is left out; values outside of what was seen mean nothing.

    `size` may be that of the image scaled down.
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
    # Places that saw padding alone must not shine into the image.
    first_column, first_row = int(part[0]), int(part[1])
    places = places[first_row : math.ceil(part[3]), first_column : math.ceil(part[2])]
    part = (part[0] - first_column, part[1] - first_row, part[2] - first_column, part[3] - first_row)
    smooth = Image.fromarray(places).resize((right - left, bottom - top), Image.Resampling.BILINEAR, part)
    values = np.zeros((size[1], size[0]), np.float32)
    was_seen = np.zeros(values.shape, np.bool_)
    values[top:bottom, left:right] = np.asarray(smooth)
    was_seen[top:bottom, left:right] = True
    return values, was_seen

"""Pastes small images with soft edges and shadows onto a large one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom exclusive."""


class Stamp(NamedTuple):
    """An image to paste onto another: `under * transmitted + emitted`; `box` bounds its visible part."""

    transmitted: Floats  # [height, width, 1], 0..1
    emitted: Floats  # [height, width, 3], grey levels
    alpha: Floats  # [height, width, 1], the object alone, 0..1
    box: Box


def stamped(emitted: Floats, alpha: Floats, shadow: Floats) -> Stamp:
    """The stamp of an object: its colours times `alpha` ([h, w, 3]) and its shadow ([h, w, 1], the light it takes away)."""
    transmitted = (1 - alpha) * (1 - shadow)
    # Ignore shadow weaker than half a grey level; otherwise boxes would reach far beyond the visible part.
    touched = transmitted[..., 0] < 1 - 0.5 / 255
    transmitted = np.where(touched[..., None], transmitted, 1).astype(np.float32)
    emitted = np.where(touched[..., None], emitted, 0).astype(np.float32)
    rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
    assert len(rows), "a stamp without any visible pixel"
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Stamp(transmitted, emitted, alpha, box)


def lay(
    pixels: Floats, stamp: Stamp, x: float, y: float, owner: NDArray[np.int16] | None = None, number: int = 0
) -> Box:
    """Pastes `stamp` with its centre at pixel (x, y) into `pixels` [height, width, 3]; returns its box there.

    `owner` [height, width] is set to `number` wherever the object itself is visible. Parts outside the image are cut off.
    """
    height, width = pixels.shape[:2]
    down, across = stamp.alpha.shape[:2]
    left, top = round(x) - across // 2, round(y) - down // 2
    outer = slice(max(0, top), max(0, min(height, top + down))), slice(max(0, left), max(0, min(width, left + across)))
    inner = slice(outer[0].start - top, outer[0].stop - top), slice(outer[1].start - left, outer[1].stop - left)
    under = pixels[outer]
    if under.size:
        under[:] = under * stamp.transmitted[inner] + stamp.emitted[inner]
        if owner is not None:
            owner[outer][stamp.alpha[inner][..., 0] > 0.5] = number
    box = stamp.box
    right, bottom = min(width, left + box[2]), min(height, top + box[3])
    return min(width, max(0, left + box[0])), min(height, max(0, top + box[1])), max(0, right), max(0, bottom)

"""Attention maps as images: which part of an image the model saw, and where in it the delta module looked."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from onediff.config.model import ImageConfig
from onediff.data.geometry import over_image

COLOURS = ((0, 0, 0, 0), (60, 20, 140, 90), (200, 40, 90, 150), (255, 150, 30, 190), (255, 250, 160, 220))
"""Red, green, blue, alpha at equal distances from least to most attention."""
CLEAR, LONGEST = 256, 16384
"""Pixels of the longer side of an image on a sheet: with fewer, people cannot make out a map; more, few programs open."""
UNSEEN = (150, 150, 150, 225)
"""Drawn over what `fit: crop` cuts off."""


def packed(attention: np.ndarray) -> str:
    """`[2, side, side]` as base64, one byte per place; 0 is the least attention of the pair and 255 the most."""
    low, high = float(attention.min()), float(attention.max())
    scaled = np.round((attention - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return base64.b64encode(scaled.tobytes()).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    """`[2, side, side]` uint8 from the text of `packed`. Raises ValueError for other text."""
    flat = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    side = round((flat.size / 2) ** 0.5)
    return flat.reshape(2, side, side)


def map_images(attention: np.ndarray, sizes: Sequence[tuple[int, int]], config: ImageConfig) -> list[Image.Image]:
    """Translucent RGBA images of `sizes` (those of before and after): the colours of their maps `[2, side, side]` (uint8)
    over what the model sees, and grey over the rest.

    Colours range from the least to the most attention on the images themselves; attention to padding does not count.
    """
    maps = [over_image(one.astype(np.float32), size, config) for one, size in zip(attention, sizes, strict=True)]
    inside = np.concatenate([values[was_seen] for values, was_seen in maps])
    low, high = inside.min(), inside.max()
    reach = max(high - low, 16)  # a smaller range is rounding of the integers, which must not be amplified
    return [_coloured((values - low) / reach, was_seen) for values, was_seen in maps]


def _coloured(shares: np.ndarray, was_seen: np.ndarray) -> Image.Image:
    """RGBA of attention (0 to 1) where `was_seen`, both `[height, width]`."""
    table = np.asarray(COLOURS, dtype=np.float32)
    values = shares.clip(0, 1) * (len(COLOURS) - 1)
    below = np.minimum(values.astype(int), len(COLOURS) - 2)
    part = (values - below)[..., None]
    colours = np.where(was_seen[..., None], table[below] * (1 - part) + table[below + 1] * part, UNSEEN)
    return Image.fromarray(np.round(colours).astype(np.uint8))


def laid_over(images: Sequence[Image.Image], attention: np.ndarray, config: ImageConfig) -> list[Image.Image]:
    """Before and after (RGB) under the maps `[2, side, side]` (uint8)."""
    maps = map_images(attention, [image.size for image in images], config)
    over = zip(images, maps, strict=True)
    return [Image.alpha_composite(image.convert("RGBA"), one).convert("RGB") for image, one in over]


def side_by_side(before: Image.Image, after: Image.Image, attention: np.ndarray, config: ImageConfig) -> Image.Image:
    """Both images under the maps `[2, side, side]` (uint8), scaled to the same height, in one image.

    The longer side of the longer image becomes at least `CLEAR` and at most `LONGEST`.
    """
    height = max(before.height, after.height)
    longer = max(height, *(image.width * height / image.height for image in (before, after)))
    height = max(1, round(height * min(max(longer, CLEAR), LONGEST) / longer))
    widths = (min(LONGEST, max(1, round(image.width * height / image.height))) for image in (before, after))
    scaled = [image.resize((width, height)) for image, width in zip((before, after), widths, strict=True)]
    both = laid_over(scaled, attention, config)
    gap = max(4, height // 60)
    sheet = Image.new("RGB", (both[0].width + gap + both[1].width, height), "white")
    sheet.paste(both[0], (0, 0))
    sheet.paste(both[1], (both[0].width + gap, 0))
    return sheet


def png(image: Image.Image) -> bytes:
    """The image as PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()

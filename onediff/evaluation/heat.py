"""Heat maps as pictures: which part of a picture a model saw, and where in it its delta module looked."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from onediff.data.geometry import over_picture
from onediff.model.config import PictureConfig

COLOURS = ((0, 0, 0, 0), (60, 20, 140, 90), (200, 40, 90, 150), (255, 150, 30, 190), (255, 250, 160, 220))
"""From least to most attention: red, green, blue, alpha at equal distances."""
UNSEEN = (150, 150, 150, 225)
"""Over what `fit: crop` cuts away."""


def packed(heat: np.ndarray) -> str:
    """`[2, side, side]` as text: a byte a place, base64; 0 is the least attention of the pair and 255 the most."""
    low, high = float(heat.min()), float(heat.max())
    scaled = np.round((heat - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return base64.b64encode(scaled.tobytes()).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    """`[2, side, side]` uint8 of `packed`. Raises ValueError for text that is none."""
    flat = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    side = round((flat.size / 2) ** 0.5)
    return flat.reshape(2, side, side)


def heat_picture(heat_SS: np.ndarray, size: tuple[int, int], config: PictureConfig) -> Image.Image:
    """A see-through RGBA picture of `size` with the colours of one map (uint8) on what the model sees, grey on the rest."""
    values, was_seen = over_picture(heat_SS.astype(np.float32), size, config)
    values *= (len(COLOURS) - 1) / 255
    table = np.asarray(COLOURS, dtype=np.float32)
    below = np.minimum(values.astype(int), len(COLOURS) - 2)
    share = (values - below)[..., None]
    colours = np.where(was_seen[..., None], table[below] * (1 - share) + table[below + 1] * share, UNSEEN)
    return Image.fromarray(np.round(colours).astype(np.uint8))


def laid_over(picture: Image.Image, heat_SS: np.ndarray, config: PictureConfig) -> Image.Image:
    """The picture (RGB) with one map (uint8) over it."""
    return Image.alpha_composite(picture.convert("RGBA"), heat_picture(heat_SS, picture.size, config)).convert("RGB")


def side_by_side(before: Image.Image, after: Image.Image, heat: np.ndarray, config: PictureConfig) -> Image.Image:
    """Both pictures with the maps `[2, side, side]` (uint8) over them, at one height, in one picture."""
    height = max(before.height, after.height)
    both = []
    for picture, one in zip((before, after), heat, strict=True):
        scaled = picture.resize((max(1, round(picture.width * height / picture.height)), height))
        both.append(laid_over(scaled, one, config))
    gap = max(4, height // 60)
    sheet = Image.new("RGB", (both[0].width + gap + both[1].width, height), "white")
    sheet.paste(both[0], (0, 0))
    sheet.paste(both[1], (both[0].width + gap, 0))
    return sheet


def png(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()

"""Fits cut-outs to a photograph: scales them, matches their colours, adds soft edges and a shadow."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from data_prep.compose.config import ComposeConfig
from data_prep.compose.library import Cutout, Solid
from data_prep.compose.stage import Piece
from data_prep.scenes.things import COLOURS
from data_prep.stamp import Floats, Stamp, stamped

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
FEATHER = 0.7
"""Softness of the edges, in pixels."""
BLUR = 0.07
"""Softness of a blurred cut-out, as a share of its longest side."""
SHADOW = 0.06
"""Softness of the shadow and its distance, as shares of the longest side."""
PAINT, MIRRORING = 30.0, 45.0
"""Mean differences over a cut-out, in grey levels, above which a change is clearly visible."""


class Tone(NamedTuple):
    """Overall tone of a photograph in grey levels: mean colour [3], contrast, and contrast in fine detail."""

    mean: Floats
    contrast: float
    detail: float


def tone_of(photograph: Image.Image) -> Tone:
    """The tone of a photograph."""
    small = photograph.resize((128, 128), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.float32)
    soft = np.asarray(small.filter(ImageFilter.GaussianBlur(3)), np.float32)
    return Tone(pixels.mean((0, 1)), float((pixels @ LUMINANCE).std()), float(np.abs(pixels - soft).mean()))


def piece_stamp(piece: Piece, side: int, tone: Tone, config: ComposeConfig) -> Stamp:
    """`piece` with `side` pixels along its longer side, ready to be pasted on a photograph of that tone."""
    image = piece.cutout.open()
    if piece.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(image.size)
    size = max(2, round(image.width * scale)), max(2, round(image.height * scale))
    pixels = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    colours, alpha = _layers(pixels)
    if piece.colour is not None:
        colours = painted(colours, piece.colour)
    colours = _matched(colours, alpha, tone, config.match)
    border = round(side * 4 * SHADOW) + 2
    room = ((border, border), (border, border), (0, 0))
    alpha = np.pad(alpha, room)
    emitted = np.pad(colours, room, mode="edge")
    if piece.blurred:
        emitted, alpha = _blurred(emitted * alpha, side * BLUR), _blurred(alpha, side * BLUR)
    else:
        alpha = np.minimum(alpha, _blurred(alpha, FEATHER))
        emitted = emitted * alpha
    distance = max(1, round(side * SHADOW))
    shadow = config.shadow * _blurred(np.roll(alpha, (distance, distance), (0, 1)), side * SHADOW)
    return stamped(emitted, alpha, shadow)


def painted(colours: Floats, colour: str) -> Floats:
    """`colours` [..., 3] in shades of one of the named colours."""
    light = (colours @ LUMINANCE / 255)[..., None]
    return np.minimum(np.array(COLOURS[colour], np.float32) * (0.35 + 0.85 * light), 255).astype(np.float32)


@lru_cache(maxsize=4096)
def shows_paint(cutout: Cutout | Solid, colour: str) -> bool:
    """Whether painting a cut-out in `colour` is clearly visible."""
    colours, alpha = _small(cutout)
    return bool((np.abs(painted(colours, colour) - colours) * alpha).sum() / 3 > PAINT * alpha.sum())


@lru_cache(maxsize=4096)
def shows_mirroring(cutout: Cutout | Solid) -> bool:
    """Whether mirroring a cut-out is clearly visible."""
    colours, alpha = _small(cutout)
    seen = colours * alpha + 128 * (1 - alpha)
    return bool(np.abs(seen - seen[:, ::-1]).mean() * alpha.size / alpha.sum() > MIRRORING)


def _small(cutout: Cutout | Solid) -> tuple[Floats, Floats]:
    """Colours [32, 32, 3] and alpha [32, 32, 1] of a cut-out stretched to a square."""
    return _layers(cutout.open().resize((32, 32), Image.Resampling.BILINEAR))


def _layers(image: Image.Image) -> tuple[Floats, Floats]:
    """Colours [height, width, 3] in grey levels and alpha [height, width, 1] in 0..1 of an image in RGBA."""
    pixels = np.asarray(image, np.float32)
    return pixels[..., :3], (pixels[..., 3:] / 255).astype(np.float32)


def _matched(colours: Floats, alpha: Floats, tone: Tone, share: float) -> Floats:
    """`colours` with mean and contrast shifted towards the photograph's by `share`."""
    weight = alpha / max(float(alpha.sum()), 1e-6)
    mean = (colours * weight).sum((0, 1))
    light = colours @ LUMINANCE
    contrast = float(np.sqrt((((light - mean @ LUMINANCE) ** 2)[..., None] * weight).sum()))
    ratio = np.clip(tone.contrast / max(contrast, 1.0), 0.6, 1.4)
    moved = (colours - mean) * (1 + share * (ratio - 1)) + mean + share * (tone.mean - mean)
    return np.clip(moved, 0, 255).astype(np.float32)


def _blurred(layers: Floats, radius: float) -> Floats:
    """Gaussian blur of [height, width, 1] in 0..1, or of [height, width, 3] in grey levels."""
    factor = 255.0 if layers.shape[-1] == 1 else 1.0
    values: NDArray[np.uint8] = np.clip(layers * factor + 0.5, 0, 255).astype(np.uint8)
    image = Image.fromarray(values[..., 0] if layers.shape[-1] == 1 else values)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / factor
    return soft.reshape(layers.shape)

"""Backgrounds of scenes: a plain colour, a gradient, a texture, or a muted photograph."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.scenes.config import BackgroundType
from data_prep.scenes.distractors import Camera
from onediff.errors import UserError

MARGIN = 0.15
"""Margin of a background beyond each side of the image, so that the camera can move."""
# The colourful photographs in scikit-image that are free of copyright (CC0 or public domain).
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "rocket.jpg",
)
CONTRAST = 0.45
"""How much of a photograph's colours is kept; more would compete with the objects."""


def draw_background(rng: np.random.Generator, kind: BackgroundType, width: int, height: int) -> Image.Image:
    """A background for images of `width` x `height` pixels with MARGIN added on every side.

    Raises UserError if `kind` is a photograph and scikit-image is missing.
    """
    across, down = round(width * (1 + 2 * MARGIN)), round(height * (1 + 2 * MARGIN))
    if kind == "photograph":
        return _photograph(rng, across, down)
    base = _muted(rng)
    pixels = np.broadcast_to(base, (down, across, 3))
    if kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[-0.5 : 0.5 : down * 1j, -0.5 : 0.5 : across * 1j]
        slope = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
        pixels = base * (1 - slope) + _muted(rng) * slope
    elif kind == "texture":
        pixels = base + sum(_cloud(rng, across, down, int(grain)) for grain in (3, 9, rng.integers(12, 30)))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _muted(rng: np.random.Generator) -> NDArray[np.float64]:
    """A colour [3] of middling brightness and little saturation, unlike any object's."""
    return rng.uniform(70, 165) + rng.uniform(-18, 18, 3)


def _cloud(rng: np.random.Generator, across: int, down: int, grain: int) -> NDArray[np.float64]:
    """Smooth noise [down, across, 1] with about `grain` bumps to a side, in grey levels around zero."""
    noise = Image.fromarray(rng.normal(0, 11, (grain, grain)).astype(np.float32))
    return np.asarray(noise.resize((across, down), Image.Resampling.BICUBIC), np.float64)[..., None]


def _photograph(rng: np.random.Generator, across: int, down: int) -> Image.Image:
    """A part of a photograph, with reduced contrast."""
    part = draw_part(rng, _open(PHOTOGRAPHS[int(rng.integers(len(PHOTOGRAPHS)))]), across, down)
    return Image.blend(Image.new("RGB", part.size, (112, 112, 112)), part, CONTRAST)


def draw_part(rng: np.random.Generator, photograph: Image.Image, across: int, down: int) -> Image.Image:
    """A random part of `photograph` at `across` x `down` pixels, undistorted."""
    scale = min(photograph.width / across, photograph.height / down) * rng.uniform(0.6, 1)
    left = rng.uniform(0, photograph.width - across * scale)
    top = rng.uniform(0, photograph.height - down * scale)
    box = (left, top, left + across * scale, top + down * scale)
    return photograph.resize((across, down), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def through(camera: Camera, background: Image.Image, width: int, height: int) -> NDArray[np.float32]:
    """The part of a background with MARGIN around it that `camera` sees, [height, width, 3]."""
    part = 1 / camera.zoom / (1 + 2 * MARGIN)
    left = (MARGIN + 0.5 - 0.5 / camera.zoom + camera.right) / (1 + 2 * MARGIN)
    top = (MARGIN + 0.5 - 0.5 / camera.zoom + camera.down) / (1 + 2 * MARGIN)
    across, down = background.size
    view = (left * across, top * down, (left + part) * across, (top + part) * down)
    return np.array(background.resize((width, height), Image.Resampling.BILINEAR, box=view), np.float32)


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _open(name: str) -> Image.Image:
    """One of scikit-image's photographs, at most 512 pixels wide."""
    try:
        import skimage.data
    except ImportError:
        raise UserError(
            "backgrounds.photograph: scikit-image is not installed; install it (pip install scikit-image) or set "
            "the weight of photographs to 0"
        ) from None
    with Image.open(Path(skimage.data.__file__).parent / name) as file:
        image = file.convert("RGB")
    image.thumbnail((512, 512))
    return image

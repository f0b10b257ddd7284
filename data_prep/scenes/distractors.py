"""Distractors, the differences in a pair that are not changes: camera, light, noise, compression."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.scenes.config import DistractorsConfig


class Camera(NamedTuple):
    """How far the camera has moved right and down, as shares of the image's sides, and its zoom."""

    right: float = 0.0
    down: float = 0.0
    zoom: float = 1.0

    def seen(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the scene appears, as shares of the image's width and height."""
        return 0.5 + (x - 0.5 - self.right) * self.zoom, 0.5 + (y - 0.5 - self.down) * self.zoom


STILL = Camera()
"""The camera of every image before."""


class Distractors(NamedTuple):
    """The distractors of one pair. Camera and light apply to the image after; noise and JPEG degrade both."""

    camera: Camera = STILL
    light: tuple[float, ...] | None = None
    """Gain of red, green and blue, then the relative slope of brightness rightwards and downwards."""
    noise: float | None = None
    """Standard deviation in grey levels."""
    jpeg: int | None = None
    """Quality."""

    def described(self) -> dict[str, Any]:
        """The applied distractors, for the sample's `meta`."""
        applied: dict[str, Any] = {"viewpoint": list(self.camera)} if self.camera != STILL else {}
        applied |= {} if self.light is None else {"light": list(self.light)}
        applied |= {} if self.noise is None else {"noise": self.noise}
        return applied | ({} if self.jpeg is None else {"jpeg": self.jpeg})


def draw_distractors(rng: np.random.Generator, config: DistractorsConfig) -> Distractors:
    """Draws each distractor with the configured probability, at a random strength up to the configured one."""
    viewpoint, light, noise, jpeg = rng.random(4) < config.probability
    right, down, zoom = (float(share) * config.viewpoint for share in rng.uniform(-1, 1, 3))
    gain = 1 + rng.uniform(-1, 1) * config.light + rng.uniform(-0.3, 0.3, 3) * config.light
    slope = rng.uniform(-1, 1, 2) * config.light
    deviation, quality = rng.uniform(0.2, 1) * config.noise, int(rng.integers(config.jpeg, 101))
    return Distractors(
        Camera(right, down, 1 + zoom) if viewpoint and config.viewpoint else STILL,
        (*map(float, gain), *map(float, slope)) if light and config.light else None,
        deviation if noise and config.noise else None,
        quality if jpeg and config.jpeg < 100 else None,
    )


def disturbed(rng: np.random.Generator, pixels: NDArray[np.float32], distractors: Distractors) -> NDArray[np.uint8]:
    """The finished image [height, width, 3]: `pixels` with light, noise and compression applied, then rounded."""
    if distractors.light is not None:
        pixels = _lit(pixels, distractors.light)
    if distractors.noise is not None:
        pixels = pixels + distractors.noise * rng.standard_normal(pixels.shape, np.float32)
    image = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return image if distractors.jpeg is None else _compressed(image, distractors.jpeg)


def _lit(pixels: NDArray[np.float32], light: tuple[float, ...]) -> NDArray[np.float32]:
    """`pixels` [height, width, 3] in different light."""
    height, width = pixels.shape[:2]
    right = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * light[3]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * light[4]
    return pixels * np.array(light[:3], np.float32) * (1 + right + down)


def _compressed(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """`pixels` after one pass through JPEG."""
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "JPEG", quality=quality)
    with Image.open(packed) as image:
        return np.array(image)

"""Turns a sample's images into the tower's input, as `model.vision.image.fit` says, and counts their image tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from onediff.config.model import ImageConfig
from onediff.data.native import patched
from onediff.data.tiles import laid_on_canvas
from onediff.hub.planes_onediff import (
    OneDiffPlane,
    Size,
    best_grid,
    native_plane,
    native_shape,
    place_in,
    tile_plane,
)

Pixels = Literal["fast", "exact"]


class Seen(NamedTuple):
    """The tower's input for the images of one sample."""

    images: NDArray[np.uint8]
    """`[views, 3, size, size]`, or `[patches, numbers]` with `fit: native`."""
    tokens: tuple[int, ...]
    """Image tokens of each image."""
    planes: tuple[OneDiffPlane, ...]
    """The layout of those tokens; empty if every image is one square."""


class Fit(Protocol):
    """A way to present images to the tower. All methods raise BadSample for data that is not an image."""

    def lengths(self, encoded: Sequence[bytes], max_pixels: int) -> tuple[int, ...]:
        """Image tokens of each encoded image of a sample. Decodes nothing."""

    def read(self, encoded: Sequence[bytes], max_pixels: int, pixels: Pixels) -> Seen:
        """Decodes the images of a sample."""

    def placed(self, encoded: Sequence[bytes], max_pixels: int) -> Seen:
        """The same without the images, for precomputed features. Decodes nothing."""

    def of(self, images: Sequence[Any]) -> Seen:
        """The same from opened images (Pillow's, upright, RGB), scaled exactly."""


def fit_of(config: ImageConfig, patch: int) -> Fit:
    """The configured fit, for a tower with patches of `patch` pixels."""
    if config.fit == "tiles":
        return Tiles(config, patch)
    return Native(config, patch) if config.fit == "native" else Square(config, patch)


# Rows that need no decoding can be made without Pillow and simplejpeg, so both are imported late.


class Square:
    """Presents every image as one view."""

    def __init__(self, config: ImageConfig, patch: int) -> None:
        self.config = config
        self.tokens = (config.size // patch) ** 2

    def lengths(self, encoded: Sequence[bytes], max_pixels: int) -> tuple[int, ...]:
        return (self.tokens,) * len(encoded)

    def read(self, encoded: Sequence[bytes], max_pixels: int, pixels: Pixels) -> Seen:
        from onediff.data.images import decode

        made = self._empty(len(encoded))
        for data, place in zip(encoded, made, strict=True):
            decode(data, self.config, max_pixels, pixels, place)
        return Seen(made, (self.tokens,) * len(made), ())

    def placed(self, encoded: Sequence[bytes], max_pixels: int) -> Seen:
        return Seen(self._empty(0), self.lengths(encoded, max_pixels), ())

    def of(self, images: Sequence[Any]) -> Seen:
        from onediff.data.images import fitted

        made = self._empty(len(images))
        for image, place in zip(images, made, strict=True):
            fitted(image, self.config, place)
        return Seen(made, (self.tokens,) * len(made), ())

    def _empty(self, images: int) -> NDArray[np.uint8]:
        return np.empty((images, 3, self.config.size, self.config.size), np.uint8)


class OwnShape(ABC):
    """Presents images as inputs that depend on their size."""

    def lengths(self, encoded: Sequence[bytes], max_pixels: int) -> tuple[int, ...]:
        return self.placed(encoded, max_pixels).tokens

    def placed(self, encoded: Sequence[bytes], max_pixels: int) -> Seen:
        from onediff.data.images import upright_size

        planes = self.planes([upright_size(data, max_pixels) for data in encoded])
        return Seen(self.inputs([], "exact"), tuple(len(plane.chosen) for plane in planes), planes)

    def read(self, encoded: Sequence[bytes], max_pixels: int, pixels: Pixels) -> Seen:
        from onediff.data.images import opened

        return self._seen([opened(data, max_pixels) for data in encoded], pixels)

    def of(self, images: Sequence[Any]) -> Seen:
        return self._seen([np.asarray(image) for image in images], "exact")

    def _seen(self, images: Sequence[NDArray[np.uint8]], pixels: Pixels) -> Seen:
        planes = self.planes([image.shape[1::-1] for image in images])
        return Seen(self.inputs(images, pixels), tuple(len(plane.chosen) for plane in planes), planes)

    @abstractmethod
    def planes(self, sizes: Sequence[Size]) -> tuple[OneDiffPlane, ...]:
        """The layout of the tokens of one sample's images, from their sizes."""

    @abstractmethod
    def inputs(self, images: Sequence[NDArray[np.uint8]], pixels: Pixels) -> NDArray[np.uint8]:
        """The tower's input for images `[height, width, 3]`."""


class Tiles(OwnShape):
    """Presents every image as an overview and the tiles of a grid."""

    def __init__(self, config: ImageConfig, patch: int) -> None:
        self.side, self.most, self.patch = config.size, config.max_tiles, patch

    def planes(self, sizes: Sequence[Size]) -> tuple[OneDiffPlane, ...]:
        if not sizes:
            return ()
        grid = best_grid(sizes, self.side, self.most)
        return tuple(tile_plane(grid, size, self.side, self.patch) for size in sizes)

    def inputs(self, images: Sequence[NDArray[np.uint8]], pixels: Pixels) -> NDArray[np.uint8]:
        scale = _scale(pixels)
        if not images:
            return np.empty((0, 3, self.side, self.side), np.uint8)
        grid = best_grid([image.shape[1::-1] for image in images], self.side, self.most)
        made = []
        for image in images:
            made.append(scale(image, (self.side, self.side)).transpose(2, 0, 1)[None])
            if grid != (1, 1):
                left, top, *size = place_in(grid, image.shape[1::-1], self.side)
                made.append(laid_on_canvas(scale(image, tuple(size)), grid, left, top, self.side))
        return np.concatenate(made)


class Native(OwnShape):
    """Presents every image as patches in its own shape."""

    def __init__(self, config: ImageConfig, patch: int) -> None:
        self.patch, self.most = patch, config.max_patches

    def planes(self, sizes: Sequence[Size]) -> tuple[OneDiffPlane, ...]:
        return tuple(native_plane(native_shape(size, self.patch, self.most)) for size in sizes)

    def inputs(self, images: Sequence[NDArray[np.uint8]], pixels: Pixels) -> NDArray[np.uint8]:
        scale = _scale(pixels)
        made = [np.empty((0, 3 * self.patch**2), np.uint8)]
        for image in images:
            rows, columns = native_shape(image.shape[1::-1], self.patch, self.most)
            size = (columns * self.patch, rows * self.patch)
            made.append(patched(scale(image, size, "bilinear"), self.patch))
        return np.concatenate(made)


def _scale(pixels: Pixels) -> Any:
    from onediff.data.images import scaled_exactly, scaled_fast

    return scaled_fast if pixels == "fast" else scaled_exactly

"""Picture bytes to the tower's uint8 input: exactly the pixels of the Hugging Face image processors, or nearly and faster.

Decoding and scaling are most of what a stream costs. Of a JPEG of 768 × 576 pixels, scaled to 336, Pillow decodes in a third
of its time and scales in two thirds; libjpeg-turbo called without Pillow, and torch's vector code for the same filter, need
a third of that. Their pixels differ by 0.01 of 255 on average and by 2 at most (`benchmarks/loader.py` prints it for these
and for the ways that were not taken: scaled decoding and OpenCV's filters are off by 50).
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn.functional import interpolate

from onediff.data.sample import BadSample
from onediff.model.config import PictureConfig

ORIENTATION = 0x0112
"""EXIF tag."""


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """An RGB picture, upright by its EXIF orientation, transparency laid on white.

    The size is read from the header before anything is decoded. Raises BadSample.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > max_pixels:
                raise BadSample("too_many_pixels", f"{picture.width} × {picture.height} pixels")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return to_rgb(upright)
    except BadSample:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, from the header as well
        raise BadSample("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise BadSample("bad_picture", "of no kind that Pillow reads, or cut short") from None
    except Exception as error:  # Pillow's plugins raise whatever their format's parser stumbles over
        raise BadSample("bad_picture", f"{type(error).__name__}: {error}") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grey scaled to 8 bits, transparency laid on white."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):
        levels = np.asarray(picture, dtype=np.float64)
        return Image.fromarray(
            (levels / max(levels.max(), 65535 if levels.max() > 255 else 255) * 255).astype(np.uint8)
        ).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        with_alpha = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return picture.convert("RGB")


def fitted(picture: Image.Image, config: PictureConfig, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """`[3, size, size]` uint8, in `out` if given: bicubic scaling and, with `fit: crop`, the middle square."""
    (width, height), left, top = _scaled(picture.size, config)
    box = (left, top, left + config.size, top + config.size)
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC).crop(box)
    out = np.empty((3, config.size, config.size), np.uint8) if out is None else out
    out[:] = np.asarray(scaled, dtype=np.uint8).transpose(2, 0, 1)
    return out


def fitted_fast(
    pixels: NDArray[np.uint8], config: PictureConfig, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """What `fitted` gives, but for the rounding of its weights, from pixels `[height, width, 3]`."""
    (width, height), left, top = _scaled((pixels.shape[1], pixels.shape[0]), config)
    scaled = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if scaled.shape[2:] != (height, width):
        scaled = interpolate(scaled, (height, width), mode="bicubic", antialias=True)
    out = np.empty((3, config.size, config.size), np.uint8) if out is None else out
    torch.from_numpy(out).copy_(scaled[0, :, top : top + config.size, left : left + config.size])
    return out


def _scaled(size: tuple[int, int], config: PictureConfig) -> tuple[tuple[int, int], int, int]:
    """Width and height that a picture of `size` is scaled to, and where its middle square begins."""
    if config.fit == "squash":
        return (config.size, config.size), 0, 0
    shorter = config.shorter_side or config.size
    width, height = size
    # The longer side is cut down to a whole number, as the processors do; in whole numbers nothing is lost before.
    short = min(width, height)
    scaled = (shorter * width // short, shorter * height // short)
    return scaled, (scaled[0] - config.size) // 2, (scaled[1] - config.size) // 2


def decode(
    data: bytes,
    config: PictureConfig,
    max_pixels: int = 100_000_000,
    pixels: Literal["fast", "exact"] = "exact",
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Encoded picture bytes to `[3, size, size]` uint8, in `out` if given. Raises BadSample."""
    if pixels == "exact":
        return fitted(open_picture(data, max_pixels), config, out)
    plain = _plain_jpeg(data, max_pixels)
    return fitted_fast(np.array(open_picture(data, max_pixels)) if plain is None else plain, config, out)


def _plain_jpeg(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """The pixels of an upright RGB JPEG without fault; None for every other picture, of which Pillow is the judge."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or width * height > max_pixels or _may_be_turned(data):
            return None
        return simplejpeg.decode_jpeg(data)
    except Exception:  # as above, whatever the parsers stumble over: open_picture says what it is
        return None


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has an orientation other than upright; Pillow, which costs 0.3 ms, is asked only where there is one."""
    if b"Exif\0" not in data and b"tiff:Orientation" not in data:
        return False
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
        return header.getexif().get(ORIENTATION, 1) != 1

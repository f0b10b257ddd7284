"""Picture bytes to the tower's uint8 input, equal to the Hugging Face image processors' pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from onediff.data.sample import BadSample
from onediff.model.config import PictureConfig


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


def fitted(picture: Image.Image, config: PictureConfig) -> NDArray[np.uint8]:
    """`[3, size, size]` uint8: bicubic scaling and, with `fit: crop`, the middle square."""
    size = config.size
    if config.fit == "squash":
        box = picture.resize((size, size), Image.Resampling.BICUBIC)
    else:
        shorter = config.shorter_side or size
        width, height = picture.size
        # The longer side is cut down to a whole number, as the processors do; in whole numbers nothing is lost before.
        short = min(width, height)
        scaled = (shorter * width // short, shorter * height // short)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        box = picture.resize(scaled, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(box, dtype=np.uint8).transpose(2, 0, 1))


def decode(data: bytes, config: PictureConfig, max_pixels: int = 100_000_000) -> NDArray[np.uint8]:
    """Encoded picture bytes to `[3, size, size]` uint8. Raises BadSample."""
    return fitted(open_picture(data, max_pixels), config)

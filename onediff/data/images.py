"""Turns image bytes into the tower's uint8 input: exactly the pixels of the Hugging Face image processors, or faster and
nearly the same.

Decoding and scaling dominate the cost of loading. Plain JPEGs go directly to libjpeg-turbo. Pillow uses the same library
and returns the same bytes, at six times the cost for a small image. Exact scaling uses Pillow. Fast scaling uses torch's
vectorised code for the same filter, which differs by 0.01 of 255 on average and by at most 2. `benchmarks/loader.py` prints
these figures, and those of alternatives: scaled decoding and OpenCV's filters are off by up to 50.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.nn.functional import interpolate

from onediff.config.model import ImageConfig
from onediff.data.formats import kind_of, open_image, to_rgb
from onediff.data.geometry import crop_place, pad_place
from onediff.data.sample import BadSample

ORIENTATION = 0x0112
"""EXIF tag."""
MOST_SQUARES = 64
MOST_COPIES = 16
"""Limits on the pixels of a scaled or padded intermediate image, as multiples of the tower's square and of the image. An
image that would exceed them, such as a strip of 1 × 20,000 pixels, is cropped before it is scaled, or scaled before it is
padded. All others equal the image processors' output."""
BAND_PIXELS = 1 << 22
"""Pixels that are padded at a time."""
ORIENTATION_MARKS = (b"Exif\0", b"eXIf", b"Raw profile type", b"tiff:Orientation", b"com.adobe.xmp")
"""Every JPEG and PNG with an orientation contains one of these."""


def open_upright(data: bytes, max_pixels: int) -> Image.Image:
    """Opens an image as RGB, rotated by its EXIF orientation, with transparency on white.

    Checks the size in the header before decoding anything. Raises BadSample.
    """
    with _judged(data, max_pixels) as image:
        image.load()
        return to_rgb(image)


@contextmanager
def _judged(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an image without decoding it. Turns every error of Pillow, here and in the block, into BadSample."""
    try:
        with open_image(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise BadSample("too_many_pixels", f"{image.width} × {image.height} pixels")
            yield image
    except BadSample:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, from the header as well
        raise BadSample("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise BadSample("bad_image", kind_of(data)) from None
    except Exception as error:  # Pillow's plugins raise many kinds of exceptions
        raise BadSample("bad_image", f"{type(error).__name__}: {error}") from None


Filter = Literal["bicubic", "bilinear"]
Scale = Callable[[NDArray[np.uint8], tuple[int, int]], NDArray[np.uint8]]
"""Bicubic scaling of pixels `[height, width, 3]` to a width and height."""


def fitted(
    image: Image.Image | NDArray[np.uint8], config: ImageConfig, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Scales an RGB image, or its pixels `[height, width, 3]`, to the tower's square as `config.fit` says.

    Returns `[3, size, size]` uint8, written to `out` if given. Raises BadSample.
    """
    return _laid(_fit(np.asarray(image), config, scaled_exactly), out)


def fitted_fast(
    pixels: NDArray[np.uint8], config: ImageConfig, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """`fitted` for pixels `[height, width, 3]`, up to the rounding of filter weights. Raises BadSample."""
    return _laid(_fit(pixels, config, scaled_fast), out)


def scaled_exactly(pixels: NDArray[np.uint8], size: tuple[int, int], filter: Filter = "bicubic") -> NDArray[np.uint8]:
    """A `Scale` with Pillow's filter, as used by the image processors."""
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling[filter.upper()]))


def scaled_fast(pixels: NDArray[np.uint8], size: tuple[int, int], filter: Filter = "bicubic") -> NDArray[np.uint8]:
    """A `Scale` with torch's vectorised code for the same filter."""
    if pixels.shape[1::-1] == size:
        return pixels
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return interpolate(batch, size[::-1], mode=filter, antialias=True)[0].permute(1, 2, 0).numpy()


def cropped(pixels: NDArray[np.uint8], config: ImageConfig, scale: Scale) -> NDArray[np.uint8]:
    """The centre crop, `[size, size, 3]`, of the image scaled by its shorter side."""
    (height, width), size = pixels.shape[:2], config.size
    scaled, left, top = crop_place((width, height), config)
    if scaled[0] * scaled[1] > MOST_SQUARES * size * size:
        across, down = width / scaled[0], height / scaled[1]
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box))
    return scale(pixels, scaled)[top : top + size, left : left + size]


def padded(pixels: NDArray[np.uint8], config: ImageConfig, scale: Scale) -> NDArray[np.uint8]:
    """The whole image centred in a square of the mean colour, `[size, size, 3]`, as by LLaVA-1.5's `expand2square`.

    Filters scale width before height and round to bytes in between. So this scales the width first, one band of rows at
    a time, and adds the rows of padding afterwards. The bytes are the same, but the large square is never allocated.
    """
    side, left, top = pad_place(pixels.shape[1::-1])
    if pixels.shape[:2] == (config.size, config.size):
        return pixels
    colour = [int(255 * mean) for mean in config.mean]
    if side * side > max(MOST_SQUARES * config.size**2, MOST_COPIES * pixels.size // 3):
        return _scaled_then_padded(pixels, config, colour, scale)
    narrow = _plain(side, config.size, colour)
    rows = max(1, BAND_PIXELS // side)
    for start in range(0, len(pixels), rows):
        band = pixels[start : start + rows]
        if band.shape[1] < side:
            wide = _plain(len(band), side, colour)
            wide[:, left : left + band.shape[1]] = band
            band = wide
        narrow[top + start : top + start + len(band)] = scale(band, (config.size, len(band)))
    return scale(narrow, (config.size, config.size))


def _fit(pixels: NDArray[np.uint8], config: ImageConfig, scale: Scale) -> NDArray[np.uint8]:
    """`[size, size, 3]`. Raises BadSample."""
    if config.fit == "crop":
        return cropped(pixels, config, scale)
    if config.fit == "pad":
        return padded(pixels, config, scale)
    return scale(pixels, (config.size, config.size))


def _plain(height: int, width: int, colour: Sequence[int]) -> NDArray[np.uint8]:
    """`[height, width, 3]` of one colour, filled by rows, because numpy copies rows faster than single pixels."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:1] = colour
    pixels[1:] = pixels[:1]
    return pixels


def _scaled_then_padded(
    pixels: NDArray[np.uint8], config: ImageConfig, colour: Sequence[int], scale: Scale
) -> NDArray[np.uint8]:
    """`padded` without long rows of padding; the image may be off by up to a pixel."""
    height, width = (max(1, round(side * config.size / max(pixels.shape))) for side in pixels.shape[:2])
    square = _plain(config.size, config.size, colour)
    top, left = (config.size - height) // 2, (config.size - width) // 2
    square[top : top + height, left : left + width] = scale(pixels, (width, height))
    return square


def _laid(square: NDArray[np.uint8], out: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Transposes `[side, side, 3]` to `[3, side, side]`, written to `out` if given."""
    out = np.empty((3, *square.shape[:2]), np.uint8) if out is None else out
    out[:] = square.transpose(2, 0, 1)
    return out


def decode(
    data: bytes,
    config: ImageConfig,
    max_pixels: int = 100_000_000,
    pixels: Literal["fast", "exact"] = "exact",
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Decodes an image to `[3, size, size]` uint8, written to `out` if given. Raises BadSample."""
    fit = fitted_fast if pixels == "fast" else fitted
    return fit(opened(data, max_pixels), config, out)


def opened(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """`[height, width, 3]`: the image in its own size, upright, RGB. Raises BadSample."""
    plain = _plain_jpeg(data, max_pixels)
    return np.array(open_upright(data, max_pixels)) if plain is None else plain


def upright_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """The size of the image that `open_upright` returns, from the header alone. Raises BadSample."""
    with _judged(data, max_pixels) as image:
        width, height = image.size
        # For most formats, Pillow searches the whole file for an orientation.
        if image.format in ("JPEG", "PNG") and not any(mark in data for mark in ORIENTATION_MARKS):
            return width, height
        return (height, width) if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def _plain_jpeg(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """The pixels of a valid, upright RGB JPEG, as Pillow decodes it; None for anything else, which is left to Pillow."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or width * height > max_pixels or _may_be_turned(data) or _has_profile(data):
            return None
        return simplejpeg.decode_jpeg(data)
    except Exception:  # as above, of many kinds; open_upright reports the fault
        return None


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has an orientation other than upright. Asks Pillow, at 0.3 ms, only if the file has one."""
    if b"Exif\0" not in data and b"tiff:Orientation" not in data:
        return False
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
        return header.getexif().get(ORIENTATION, 1) != 1


def _has_profile(data: bytes) -> bool:
    """Whether a JPEG has a colour profile, which only Pillow applies."""
    return b"ICC_PROFILE\0" in data

"""Image bytes to the tower's uint8 input: exactly the pixels of the Hugging Face image processors, or nearly and faster.

Decoding and scaling are most of what a stream costs. Plain JPEGs go to libjpeg-turbo directly: Pillow, which uses the same
library, returns the same bytes at six times the cost for a small image. Scaling is Pillow's where pixels must be exact.
Torch's vector code for the same filter is faster and differs by 0.01 of 255 on average and by 2 at most
(`benchmarks/loader.py` prints it, also for the ways that were not taken: scaled decoding and OpenCV's filters are off by
50).
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
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn.functional import interpolate

from onediff.config.model import ImageConfig
from onediff.data.formats import foreign_profile, kind_of, open_image, to_eight_bits, to_srgb
from onediff.data.geometry import crop_place, pad_place
from onediff.data.sample import BadSample

ORIENTATION = 0x0112
"""EXIF tag."""
MOST_SQUARES = 64
MOST_COPIES = 16
"""Scaling an image makes at most that many times the pixels of the tower's square, or of the image: a strip of one pixel by
20,000 is cut before it is scaled, and scaled before it is padded. Others come out exactly as of the image processors."""
BAND_PIXELS = 1 << 22
"""Pixels of a band that is padded at a time."""
ORIENTATION_MARKS = (b"Exif\0", b"eXIf", b"Raw profile type", b"tiff:Orientation", b"com.adobe.xmp")
"""One of these stands in every JPEG and PNG that has an orientation."""


def open_upright(data: bytes, max_pixels: int) -> Image.Image:
    """An RGB image, upright by its EXIF orientation, transparency laid on white.

    The size is read from the header before anything is decoded. Raises BadSample.
    """
    with _judged(data, max_pixels) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return to_rgb(upright)


@contextmanager
def _judged(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The image, not decoded yet. Raises BadSample for what is none, and for what Pillow says inside."""
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
        raise BadSample("bad_image", f"{kind_of(data)}, or cut short") from None
    except Exception as error:  # Pillow's plugins raise whatever their format's parser stumbles over
        raise BadSample("bad_image", f"{type(error).__name__}: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB, in sRGB if it has a colour profile: grey of more bits scaled to 8, transparency laid on white."""
    if profile := foreign_profile(image):
        return to_srgb(image, profile)
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


Filter = Literal["bicubic", "bilinear"]
Scale = Callable[[NDArray[np.uint8], tuple[int, int]], NDArray[np.uint8]]
"""Bicubic scaling of pixels `[height, width, 3]` to a width and height."""


def fitted(
    image: Image.Image | NDArray[np.uint8], config: ImageConfig, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """An RGB image, or its pixels `[height, width, 3]`, scaled to the tower's square as `config.fit` says.

    `[3, size, size]` uint8, in `out` if given. Raises BadSample.
    """
    return _laid(_fit(np.asarray(image), config, scaled_exactly), out)


def fitted_fast(
    pixels: NDArray[np.uint8], config: ImageConfig, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """What `fitted` gives, but for the rounding of its weights, from pixels `[height, width, 3]`. Raises BadSample."""
    return _laid(_fit(pixels, config, scaled_fast), out)


def scaled_exactly(pixels: NDArray[np.uint8], size: tuple[int, int], filter: Filter = "bicubic") -> NDArray[np.uint8]:
    """A `Scale` with Pillow's filter, which is the image processors'."""
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling[filter.upper()]))


def scaled_fast(pixels: NDArray[np.uint8], size: tuple[int, int], filter: Filter = "bicubic") -> NDArray[np.uint8]:
    """A `Scale` with torch's vector code for the same filter."""
    if pixels.shape[1::-1] == size:
        return pixels
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return interpolate(batch, size[::-1], mode=filter, antialias=True)[0].permute(1, 2, 0).numpy()


def cropped(pixels: NDArray[np.uint8], config: ImageConfig, scale: Scale) -> NDArray[np.uint8]:
    """The middle square, `[size, size, 3]`, of the image scaled by its shorter side."""
    (height, width), size = pixels.shape[:2], config.size
    scaled, left, top = crop_place((width, height), config)
    if scaled[0] * scaled[1] > MOST_SQUARES * size * size:
        across, down = width / scaled[0], height / scaled[1]
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box))
    return scale(pixels, scaled)[top : top + size, left : left + size]


def padded(pixels: NDArray[np.uint8], config: ImageConfig, scale: Scale) -> NDArray[np.uint8]:
    """The whole image amid a square of the mean colour, `[size, size, 3]`, as LLaVA-1.5's `expand2square` makes it.

    Filters scale width before height, with bytes between. So the width is scaled first, a band of rows at a time, and
    only then come the rows of padding: the same bytes, though the large square is never made.
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
    """`[height, width, 3]` of one colour; by whole rows, as numpy takes longer over every three bytes than over a row."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:1] = colour
    pixels[1:] = pixels[:1]
    return pixels


def _scaled_then_padded(
    pixels: NDArray[np.uint8], config: ImageConfig, colour: Sequence[int], scale: Scale
) -> NDArray[np.uint8]:
    """What `padded` gives, but for the place of the image to within a pixel, without its long rows of padding."""
    height, width = (max(1, round(side * config.size / max(pixels.shape))) for side in pixels.shape[:2])
    square = _plain(config.size, config.size, colour)
    top, left = (config.size - height) // 2, (config.size - width) // 2
    square[top : top + height, left : left + width] = scale(pixels, (width, height))
    return square


def _laid(square: NDArray[np.uint8], out: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """`[side, side, 3]` as `[3, side, side]`, in `out` if given."""
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
    """Encoded image bytes to `[3, size, size]` uint8, in `out` if given. Raises BadSample."""
    fit = fitted_fast if pixels == "fast" else fitted
    return fit(opened(data, max_pixels), config, out)


def opened(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """`[height, width, 3]`: an image in its own size, upright, RGB. Raises BadSample."""
    plain = _plain_jpeg(data, max_pixels)
    return np.array(open_upright(data, max_pixels)) if plain is None else plain


def upright_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height of the image that `open_upright` gives, from the header alone. Raises BadSample."""
    with _judged(data, max_pixels) as image:
        width, height = image.size
        # Of most kinds Pillow looks for an orientation in all of the file.
        if image.format in ("JPEG", "PNG") and not any(mark in data for mark in ORIENTATION_MARKS):
            return width, height
        return (height, width) if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def _plain_jpeg(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """The pixels of an upright RGB JPEG without fault, as Pillow decodes it; None for anything else, which Pillow judges."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or width * height > max_pixels or _may_be_turned(data) or _has_profile(data):
            return None
        return simplejpeg.decode_jpeg(data)
    except Exception:  # as above, whatever the parsers stumble over: open_upright says what it is
        return None


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has an orientation other than upright; Pillow, which costs 0.3 ms, is asked only if there is one."""
    if b"Exif\0" not in data and b"tiff:Orientation" not in data:
        return False
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
        return header.getexif().get(ORIENTATION, 1) != 1


def _has_profile(data: bytes) -> bool:
    """Whether a JPEG has a colour profile, which is then Pillow's to read."""
    return b"ICC_PROFILE\0" in data

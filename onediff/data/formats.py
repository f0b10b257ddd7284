"""The supported image formats, the one way to open an image, the one to RGB, and faults that Pillow ignores."""

from __future__ import annotations

import io
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from onediff.data.sample import BadSample, image_suffix

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF", "JPEG2000")
"""No other parsers see untrusted images: Pillow would have Ghostscript execute PostScript, for example. (The JPEG parser
also reads MPO.)."""
NAMES = "JPEG, PNG, WebP, GIF, BMP, PPM, TIFF, AVIF or JPEG 2000"
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
SAME_COLOUR = 3
"""Levels of 255 by which vendors' sRGB profiles differ; a plain gamma of 2.2 differs by 6."""
HARMLESS = 16
"""Bytes of padding before a marker that are accepted; more mean missing data."""
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
"""TIFF tag, and its value if the largest level is black."""
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26
"""Image generators write megabytes of settings into a PNG's text; Pillow refuses a whole image at one."""


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Opens an image of one of `FORMATS`, or HEIC if pillow-heif is installed. Decodes no pixels yet.

    Raises what `PIL.Image.open` raises: UnidentifiedImageError for any other format.
    """
    reads_heif = is_heif(_start(source)) and _reads_heif()
    return Image.open(source, formats=(*FORMATS, "HEIF") if reads_heif else FORMATS)


def kind_of(data: bytes) -> str:
    """Describes what an unreadable image file is, and what to do about it."""
    if not data:
        return "an empty file"
    if is_heif(data):
        return "a HEIC image: pip install pillow-heif to read it, or save it as JPEG"
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "a JPEG XL image: save it as JPEG or PNG"
    if data[:4] == b"%!PS" or data[:4] == b"\xc5\xd0\xd3\xc6":
        return "a PostScript program, which OneDiff does not run: save it as PNG"
    if data[:4] == b"%PDF":
        return "a PDF document: save its page as PNG"
    if b"<svg" in data[:1024]:
        return "an SVG drawing: save it as PNG"
    if data[:1024].lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page that a server sent instead of the image"
    if data[:4] in TIFF_STARTS:
        return "a TIFF that is damaged or of an unusual kind (colours as floats, 64 bits, many bands): save it as 8-bit RGB"
    if suffix := image_suffix(data):
        return f"the start of a {suffix} image that is truncated or damaged"
    return f"not a {NAMES} image"


def is_heif(data: bytes) -> bool:
    """Whether the first bytes are those of HEIC or a related format."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS


def jpeg_fault(data: bytes) -> str | None:
    """libjpeg-turbo's error for a JPEG with missing pixels; None for a complete JPEG and for other formats.

    Decodes the image. Pillow accepts half an image and fills the rest with grey.
    """
    if data[:2] != b"\xff\xd8":
        return None
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY")
    except ValueError as error:
        extra = re.search(r"(\d+) extraneous bytes before marker", str(error))
        return None if extra and int(extra[1]) <= HARMLESS else str(error)
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright, in RGB, and in sRGB by its colour profile. Scales grey levels to 8 bits; lays alpha on white.

    Raises BadSample if the meaning of its levels is unknown.
    """
    image = upright(image)
    if profile := foreign_profile(image):
        return to_srgb(image, profile)
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; an image of more than 8 bits per pixel becomes 8-bit grey. Decodes it.

    Raises BadSample if the meaning of its levels is unknown.
    """
    turned = ImageOps.exif_transpose(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return turned
    levels = np.asarray(turned)
    # Pillow inverts only 8-bit images.
    is_inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO and levels.dtype == np.uint16
    return Image.fromarray(to_eight_bits(65535 - levels if is_inverted else levels))


def to_eight_bits(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Converts one channel of any dtype to bytes.

    Floats are in 0…1, which resampling may exceed a little, or in 0…255 if any is larger than 2. Other levels are taken as
    16 bits, as 12 if none is larger than 4,095 (as cameras and scanners store them), and as 8 if none is larger than 255.
    Raises BadSample for levels in -1…1 and for levels of 32 bits, which would become black or white.
    """
    is_float = np.issubdtype(levels.dtype, np.floating)
    finite = levels[np.isfinite(levels)]
    least, most = finite.min(initial=0), finite.max(initial=0)
    if most > 65535 or (not is_float and least < -32768):
        raise BadSample("bad_image", f"levels from {least:g} to {most:g}: save it with 8 or 16 bits per channel")
    if is_float and -1 <= least < -0.1 and most <= 1:
        raise BadSample("bad_image", f"levels from {least:g} to {most:g}: save it with levels from 0 to 1")
    if is_float:
        levels = np.nan_to_num(levels, nan=0, posinf=most, neginf=0)
    if is_float and most <= 255:
        return np.rint(levels * (255 if most <= 2 else 1)).clip(0, 255).astype(np.uint8)
    levels = levels.astype(np.int64).clip(0, 65535)
    return (levels >> (0 if most <= 255 else 4 if most <= 4095 else 8)).astype(np.uint8)


def foreign_profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The colour profile of an RGB or CMYK image if it is not sRGB, as from phones (Display P3) and printers."""
    found = image.info.get("icc_profile")
    if not found or image.mode not in ("RGB", "CMYK") or (image.mode == "RGB" and is_srgb(found)):
        return None
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(found))
        return profile if profile.profile.xcolor_space.strip() == image.mode else None
    except (ImageCms.PyCMSError, OSError):
        return None  # a broken profile says nothing about colours


@lru_cache(maxsize=64)
def is_srgb(profile: bytes) -> bool:
    """Whether an RGB ICC profile is sRGB, judged by its effect on 729 colours, because names are unreliable."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(27, 27, 3)
    try:
        made = to_srgb(Image.fromarray(colours), ImageCms.getOpenProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return False
    return int(np.abs(np.asarray(made).astype(int) - colours).max()) <= SAME_COLOUR


def to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """The image converted to sRGB, the meaning of RGB everywhere else."""
    made = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert made is not None, "only a conversion in place returns nothing"
    return made


def _start(source: str | Path | BinaryIO) -> bytes:
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            return file.read(12)
    start = source.read(12)
    source.seek(0)
    return start


def _reads_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True

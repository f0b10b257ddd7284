"""The kinds of images that are read, the one way to open them, and the faults that Pillow passes over in silence."""

from __future__ import annotations

import io
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageCms

from onediff.data.sample import image_suffix

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF", "JPEG2000")
"""Parsers of anything else stay closed to images from strangers: PostScript, for one, is a program that Pillow would
have Ghostscript run. (The JPEG parser reads MPO too.)"""
NAMES = "JPEG, PNG, WebP, GIF, BMP, PPM, TIFF, AVIF or JPEG 2000"
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
SAME_COLOUR = 3
"""Levels of 255 by which makers' profiles of sRGB differ; a plain gamma of 2.2 differs by 6."""
HARMLESS = 16
"""Bytes of padding before a marker; more are a hole."""


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Opens an image of one of `FORMATS`, and HEIC where the package pillow-heif is installed; decodes no pixel yet.

    Raises what `PIL.Image.open` raises: UnidentifiedImageError for any other kind.
    """
    reads_heif = is_heif(_start(source)) and _reads_heif()
    return Image.open(source, formats=(*FORMATS, "HEIF") if reads_heif else FORMATS)


def kind_of(data: bytes) -> str:
    """What an unreadable image is, in words, and what to do about it."""
    if not data:
        return "an empty file"
    if is_heif(data):
        return "a HEIC image: pip install pillow-heif to read it, or save it as JPEG"
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "a JPEG XL image: save it as JPEG or PNG"
    if data[:4] == b"%!PS" or data[:4] == b"\xc5\xd0\xd3\xc6":
        return "a PostScript program, which is not run: save it as PNG"
    if data[:4] == b"%PDF":
        return "a PDF document: save its page as PNG"
    if b"<svg" in data[:1024]:
        return "an SVG drawing: save it as PNG"
    if data[:1024].lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page: the server sent it in place of the image"
    if suffix := image_suffix(data):
        return f"the start of a {suffix} image: it is cut short or damaged"
    return f"not a {NAMES} image"


def is_heif(data: bytes) -> bool:
    """Whether the first bytes are those of HEIC and its kin."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS


def jpeg_fault(data: bytes) -> str | None:
    """What libjpeg-turbo says of a JPEG whose pixels are not all there; None for a whole one, and for other kinds.

    Decodes it. Pillow is content with half an image and fills the rest with grey.
    """
    if data[:2] != b"\xff\xd8":
        return None
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY")
    except ValueError as error:
        extra = re.search(r"(\d+) extraneous bytes before marker", str(error))
        return None if extra and int(extra[1]) <= HARMLESS else str(error)
    return None


def to_eight_bits(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Levels of one channel in any number type as bytes.

    Floats lie in 0…1, or in 0…255 where one is larger. Integers fill 16 bits, or 12 where none is larger than 4,095, as
    cameras and scanners store them; 8 where none is larger than 255.
    """
    if np.issubdtype(levels.dtype, np.floating):
        levels = np.nan_to_num(levels)
        if levels.max(initial=0) <= 255:
            return np.rint(levels * (255 if levels.max(initial=0) <= 1 else 1)).clip(0, 255).astype(np.uint8)
    levels = levels.astype(np.int64).clip(0, 65535)
    most = levels.max(initial=0)
    return (levels >> (0 if most <= 255 else 4 if most <= 4095 else 8)).astype(np.uint8)


def foreign_profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The colour profile of an RGB or CMYK image where it is another than sRGB, as of phones (Display P3) and printers."""
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
    """Whether an ICC profile of RGB means sRGB, by what it does to 729 colours; its name proves nothing."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(27, 27, 3)
    try:
        made = to_srgb(Image.fromarray(colours), ImageCms.getOpenProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return False
    return int(np.abs(np.asarray(made).astype(int) - colours).max()) <= SAME_COLOUR


def to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """The image in sRGB, which is what everything here takes RGB for."""
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

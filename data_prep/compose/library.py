"""Finds, names and opens the photographs, video frames and cut-outs that pairs are made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.scenes.backgrounds import PHOTOGRAPHS
from data_prep.scenes.solids import solid
from data_prep.scenes.things import COLOURS, MATERIALS, SHAPES
from onediff.data.formats import open_image, to_rgb
from onediff.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".avi", ".mp4", ".mkv", ".mov", ".webm")
FRAMES = 32
"""Number of frames taken from a video, evenly spaced."""
LONGEST_NAME = 5
SMALLEST_CUTOUT = 64
SMALLEST_BACKGROUND = 160
LARGEST_BACKGROUND = 1024


@dataclass(frozen=True)
class Background:
    """A photograph, or one frame of a video."""

    path: str
    frame: int | None = None

    def open(self) -> Image.Image:
        """The image, upright, in RGB, at most LARGEST_BACKGROUND pixels per side. Raises UserError."""
        return _photograph(self.path) if self.frame is None else _frames(self.path)[self.frame]


@dataclass(frozen=True)
class Cutout:
    """An image of one object without its surroundings. `article` and `name` are, for example, "a" and "red apple"."""

    article: str
    name: str
    path: str

    def open(self) -> Image.Image:
        """The image in RGBA without empty borders."""
        return _cutout(self.path)


@dataclass(frozen=True)
class Solid:
    """A rendered cut-out, used when no files are given."""

    article: str
    name: str
    look: tuple[str, str, str]

    def open(self) -> Image.Image:
        """The image in RGBA without empty borders."""
        return _solid(*self.look)


@dataclass(frozen=True)
class Library:
    """The material for the pairs of one split."""

    backgrounds: tuple[Background, ...]
    cutouts: tuple[Cutout | Solid, ...]


@dataclass
class SearchResult:
    """The result of a search, and the number of rejected files by reason."""

    backgrounds: list[Background] = field(default_factory=list)
    cutouts: list[Cutout | Solid] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)


def find_backgrounds(paths: Sequence[Path]) -> SearchResult:
    """The photographs and videos in `paths` (files, or folders and their subfolders); scikit-image's if `paths` is empty.

    Raises UserError if a path does not exist, nothing is suitable, or a video cannot be read.
    """
    found = SearchResult()
    for path in _files(paths or _scikit_image(), (*IMAGES, *VIDEOS)):
        if path.suffix.lower() in VIDEOS:
            count = len(_frames(str(path)))
            found.backgrounds += [Background(str(path), frame) for frame in range(count)]
            found.aside["unreadable"] += not count
            continue
        try:
            with open_image(path) as image:
                fault = _not_a_background(image)
        except (OSError, ValueError, Image.DecompressionBombError):
            fault = "unreadable"
        if fault:
            found.aside[fault] += 1
        else:
            found.backgrounds.append(Background(str(path)))
    if not found.backgrounds:
        raise UserError(
            f"{_named(paths)}: no photograph of at least {SMALLEST_BACKGROUND} pixels per side, and no video"
        )
    return found


def find_cutouts(paths: Sequence[Path]) -> SearchResult:
    """The named images with transparency in `paths` (files or folders); rendered solids if `paths` is empty.

    The first line of `<name>.txt` next to an image names it ("A red apple."), else its file name. Images with long names,
    or with a line that lacks "a" or "an", would make poor captions and are rejected.

    Raises UserError if a path does not exist or fewer than eight cut-outs are suitable.
    """
    found = SearchResult()
    if not paths:
        found.cutouts += _solids()
        return found
    for path in _files(paths, IMAGES):
        called = name_of(path)
        try:
            with open_image(path) as image:
                fault = _not_a_cutout(image) if called else "no usable name"
        except (OSError, ValueError, Image.DecompressionBombError):
            fault = "unreadable"
        if fault or not called:
            found.aside[fault] += 1
        else:
            found.cutouts.append(Cutout(*called, str(path)))
    if len(found.cutouts) < 8:
        raise UserError(f"{_named(paths)}: only {len(found.cutouts)} named images with transparency; give at least 8")
    return found


def deal(backgrounds: Sequence[Background], counts: Mapping[str, int]) -> dict[str, tuple[Background, ...]]:
    """The backgrounds of each split, in proportion to `counts`; all frames of a video go to the same split.

    Raises UserError if a split would get none.
    """
    files = sorted({background.path for background in backgrounds}, key=lambda path: blake2b(path.encode()).digest())
    if len(files) < len(counts):
        raise UserError(f"{len(files)} photographs and videos are too few for {len(counts)} splits; give more")
    # Every split starts with one file; each further file goes to the split that lacks the most.
    shares = {split: [file] for split, file in zip(counts, files, strict=False)}
    for file in files[len(counts) :]:
        shares[min(counts, key=lambda split: len(shares[split]) / counts[split])].append(file)
    return {split: tuple(b for b in backgrounds if b.path in chosen) for split, chosen in shares.items()}


def name_of(path: Path) -> tuple[str, str] | None:
    """Article and name of a cut-out: ("a", "red apple"); None if there is no short name."""
    # Tux Paint's stamps: an image's mirror image shares its name.
    stem = path.stem.removesuffix("_mirror")
    note = path.with_name(f"{stem}.txt")
    if note.is_file():
        lines = note.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        match = re.match(r"(an?)\s+([^.!?,;:()\"]+)", lines[0].strip(), re.IGNORECASE)
        if not match:
            return None
        article, name = match[1].lower(), " ".join(match[2].split())
    else:
        name = " ".join(re.sub(r"[_\W\d]+", " ", stem).split()).lower()
        article = "an" if name[:1] in tuple("aeiou") else "a"
    fits = name.isascii() and 0 < len(name.split()) <= LONGEST_NAME
    return (article, name) if fits else None


def _files(paths: Sequence[Path], suffixes: Iterable[str]) -> Iterator[Path]:
    """The files in and below `paths` with one of `suffixes`, in an order that does not depend on the disk."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in below if file.suffix.lower() in suffixes and file.is_file())


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths) or "scikit-image"


def _scikit_image() -> list[Path]:
    """The photographs that scikit-image ships."""
    try:
        import skimage.data
    except ImportError:
        raise UserError("give --backgrounds, or install scikit-image for its photographs") from None
    return [Path(skimage.data.__file__).parent / name for name in PHOTOGRAPHS]


def _solids() -> list[Solid]:
    return [
        Solid("an" if colour[0] in "aeiou" else "a", f"{colour} {shape}", (shape, colour, material))
        for shape in SHAPES
        for colour in COLOURS
        for material in MATERIALS
    ]


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _not_a_background(image: Image.Image) -> str:
    """Why an image cannot be a background; empty if it can."""
    if min(image.size) < SMALLEST_BACKGROUND:
        return "too small"
    return "transparent" if _transparent(image) else ""


def _not_a_cutout(image: Image.Image) -> str:
    """Why an image cannot be a cut-out; empty if it can."""
    if max(image.size) < SMALLEST_CUTOUT:
        return "too small"
    if not _transparent(image):
        return "not transparent"
    shares = np.asarray(image.convert("RGBA").getchannel("A")) > 128
    return "" if 0.05 < shares.mean() < 0.98 else "almost empty, or no outline"


@lru_cache(maxsize=128)
def _photograph(path: str) -> Image.Image:
    try:
        with open_image(path) as file:
            image = to_rgb(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the photograph is damaged ({error}); remove it") from error
    image.thumbnail((LARGEST_BACKGROUND, LARGEST_BACKGROUND))
    return image


@lru_cache(maxsize=8)
def _frames(path: str) -> list[Image.Image]:
    """FRAMES frames of a video, evenly spaced. Raises UserError if OpenCV is missing."""
    try:
        import cv2
    except ImportError:
        raise UserError(f"{path}: reading videos needs OpenCV; pip install opencv-python-headless") from None
    video = cv2.VideoCapture(path)
    step = max(1, int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // FRAMES)
    frames: list[Image.Image] = []
    number = 0
    # Sequential reading is exact; seeking depends on the codec's key frames.
    while len(frames) < FRAMES and video.grab():
        if number % step == 0:
            ok, pixels = video.retrieve()
            if not ok:
                break
            frames.append(Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))
            frames[-1].thumbnail((LARGEST_BACKGROUND, LARGEST_BACKGROUND))
        number += 1
    video.release()
    return frames


@lru_cache(maxsize=512)
def _cutout(path: str) -> Image.Image:
    with open_image(path) as file:
        image = file.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox())
    image.thumbnail((384, 384))
    return image


@lru_cache(maxsize=64)
def _solid(shape: str, colour: str, material: str) -> Image.Image:
    body, coverage = solid(shape, colour, material, 1, 192)
    image = Image.fromarray(np.concatenate([body, 255 * coverage], -1).astype(np.uint8))
    return image.crop(image.getchannel("A").getbbox())

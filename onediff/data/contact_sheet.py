"""Contact sheets: a grid of cells, each with images side by side above lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from onediff.errors import UserError

LINE = 15
"""Height of a line of text, in pixels."""
BETWEEN = 4
"""Pixels between the two images of a cell."""
Line = tuple[str, str]
"""A text and its colour."""


def cell(
    images: Sequence[Image.Image], lines: Sequence[Line], side: int, most: int, room: int = 0, ground: str = "white"
) -> Image.Image:
    """Images in squares of `side` pixels, `room` empty pixels for the caller, and the first `most` lines of text.

    A cell is always two images wide, so that pairs and single images fit the same grid.
    """
    made = Image.new("RGB", (2 * side + BETWEEN, side + room + most * LINE), ground)
    for number, image in enumerate(images):
        made.paste(fitted(image, side), (number * (side + BETWEEN), 0))
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(12)
    for number, (line, colour) in enumerate(lines[:most]):
        draw.text((2, side + room - 1 + number * LINE), line, colour, font)
    return made


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The image scaled so that its longer side is `side` pixels; small images are enlarged without smoothing."""
    scale = side / max(image.size)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, method)


def wrapped(text: str, side: int, most: int, colour: str = "black") -> list[Line]:
    """The text wrapped to the width of a cell with images of `side` pixels, cut after `most` lines."""
    return [(line, colour) for line in textwrap.wrap(text, (2 * side + BETWEEN) // 6)[:most]]


def grid(cells: Sequence[Image.Image], columns: int, gap: int) -> Image.Image:
    """Lays out cells of equal size in rows, left to right."""
    width, height = cells[0].size
    down = -(-len(cells) // columns)
    made = Image.new("RGB", (columns * (width + gap) + gap, down * (height + gap) + gap), "white")
    for number, one in enumerate(cells):
        y, x = divmod(number, columns)
        made.paste(one, (gap + x * (width + gap), gap + y * (height + gap)))
    return made


def save(sheet: Image.Image, file: Path) -> None:
    """Writes the sheet in the format given by the file's suffix. Raises UserError if it cannot."""
    try:
        sheet.save(file, quality=80)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{file}: cannot write the contact sheet: {reason}") from None

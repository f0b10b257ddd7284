"""Contact sheets: pairs side by side with their captions, to look at before a large data set is written."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_prep.scenes.render import Pair
from onediff.errors import UserError

ON_A_SHEET = 24
SIDE = 160
COLUMNS = 4
LINES = 3
GAP = 6


def save_sheet(pairs: Iterable[Pair], file: Path) -> None:
    """Writes `pairs`, before on the left and after on the right, as one image in the format of the file's suffix.

    Raises UserError when it cannot be written.
    """
    cells = [_cell(pair) for pair in pairs]
    width, height = cells[0].size
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for i, cell in enumerate(cells):
        row, column = divmod(i, COLUMNS)
        sheet.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    try:
        sheet.save(file, quality=80)
    except (OSError, ValueError) as error:
        raise UserError(f"--sheet {file}: cannot be written: {error}") from error


def _cell(pair: Pair) -> Image.Image:
    """One pair above its first caption."""
    font = ImageFont.load_default(12)
    line = 15
    cell = Image.new("RGB", (2 * SIDE + 2, SIDE + LINES * line), "white")
    for i, pixels in enumerate((pair.before, pair.after)):
        image = Image.fromarray(pixels)
        method = Image.Resampling.NEAREST if image.width < SIDE else Image.Resampling.BICUBIC
        image = image.resize((SIDE, round(SIDE * image.height / image.width)), method).crop((0, 0, SIDE, SIDE))
        cell.paste(image, (i * (SIDE + 2), 0))
    text = "\n".join(textwrap.wrap(pair.captions[0], 2 * SIDE // 6)[:LINES])
    ImageDraw.Draw(cell).multiline_text((0, SIDE + 1), text, "black", font, spacing=2)
    return cell

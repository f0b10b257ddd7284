"""A contact sheet of pairs with captions, to inspect before writing a large data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from data_prep.scenes.render import RenderedPair
from onediff.data.contact_sheet import cell, grid, save, wrapped

ON_A_SHEET = 24
SIDE = 160
COLUMNS = 4
LINES = 3
GAP = 6


def save_sheet(pairs: Iterable[RenderedPair], file: Path) -> None:
    """Writes `pairs`, before on the left and after on the right, above a caption. Raises UserError."""
    cells = [
        cell(
            [Image.fromarray(pair.before), Image.fromarray(pair.after)],
            wrapped(pair.captions[0], SIDE, LINES),
            SIDE,
            LINES,
            room=3,
        )
        for pair in pairs
    ]
    save(grid(cells, COLUMNS, GAP), file)

"""A sheet of the demo's worst captions beside its best ones, to show what a score hides."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from onediff.data.contact_sheet import LINE, cell, grid, save, wrapped
from onediff.data.formats import open_image
from onediff.data.heldout import HeldOut
from onediff.evaluation.items import ItemScores
from onediff.evaluation.items.scores import FOUND, HALLUCINATED, RIGHT, SAID, TRUE

SIDE, GAP, ROOM, LINES = 126, 8, 3, 7
WRONG, GOOD, INK = "#b42318", "#1f7a43", "#333333"


class ShownCaption(NamedTuple):
    """One pair on the sheet."""

    pair: str
    caption: str
    right: bool


def worst_and_best(
    items: ItemScores, captions: Mapping[str, str], rows: int
) -> tuple[list[ShownCaption], list[ShownCaption]]:
    """Up to `rows` captions with the most wrong statements, and as many right ones with the most statements.

    Change types take turns, so that neither list shows a single type.
    """
    order = sorted(range(len(items.ids)), key=lambda n: (_faults(items, n), items.rows[n][SAID]), reverse=True)
    wrong = [n for n in order if not items.rows[n][RIGHT]]
    right = sorted((n for n in order if items.rows[n][RIGHT]), key=lambda n: len(captions[items.ids[n]]), reverse=True)
    chosen = ([items.ids[n] for n in _by_turns(items, found)[:rows]] for found in (wrong, right))
    worst, best = ([ShownCaption(pair, captions[pair], items.is_right(pair)) for pair in pairs] for pairs in chosen)
    return worst, best


def _faults(items: ItemScores, number: int) -> float:
    row = items.rows[number]
    return float(row[TRUE] - row[FOUND] + row[HALLUCINATED])


def _by_turns(items: ItemScores, numbers: Sequence[int]) -> list[int]:
    """The same numbers, interleaved by the change type in their captions: the first of each type, then the second, …."""
    seen: dict[str | None, int] = {}
    turns = []
    for place, number in enumerate(numbers):
        kind = items.readings[items.ids[number]].type
        seen[kind] = seen.get(kind, 0) + 1
        turns.append((seen[kind], place, number))
    return [number for *_, number in sorted(turns)]


def save_sheet(worst: Sequence[ShownCaption], best: Sequence[ShownCaption], heldout: HeldOut, file: Path) -> None:
    """Writes one PNG: mistakes on the left, right captions on the right. Raises UserError if it cannot be written."""
    empty = cell([], [], SIDE, LINES, ROOM)
    cells = []
    for wrong, right in zip_longest(worst, best):
        cells += [empty if one is None else _cell(one, heldout) for one in (wrong, right)]
    sheet = grid(cells or [empty], 2, GAP)
    whole = Image.new("RGB", (sheet.width, sheet.height + LINE), "white")
    whole.paste(sheet, (0, LINE))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    draw.text((GAP, 2), "worst", WRONG, font)
    draw.text((sheet.width // 2 + GAP, 2), "best", GOOD, font)
    save(whole, file)


def _cell(one: ShownCaption, heldout: HeldOut) -> Image.Image:
    """Both images, the caption in the colour of its verdict and, if it is wrong, the reference."""
    images = [open_image(io.BytesIO(heldout.sample(one.pair).images[role])) for role in ("before", "after")]
    lines = wrapped(one.caption or "(nothing)", SIDE, LINES, GOOD if one.right else WRONG)
    if not one.right:
        lines += wrapped(f"truth: {heldout.references[one.pair][0]}", SIDE, LINES, INK)
    return cell(images, lines, SIDE, LINES, ROOM)

"""A sheet of the demo's worst captions beside its best ones: what a score alone does not show."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from onediff.data.heldout import HeldOut
from onediff.errors import UserError
from onediff.evaluation.items import ItemScores
from onediff.evaluation.items.scores import FOUND, HALLUCINATED, RIGHT, SAID, TRUE

SIDE, GAP, LINE, LINES = 126, 8, 13, 7
WRONG, GOOD, INK = "#b42318", "#1f7a43", "#333333"


class Shown(NamedTuple):
    """One pair on the sheet."""

    pair: str
    caption: str
    right: bool


def worst_and_best(items: ItemScores, captions: Mapping[str, str], rows: int) -> tuple[list[Shown], list[Shown]]:
    """Up to `rows` captions that are wrong in most of what they say, and as many right ones that say most.

    Each change type takes its turn, so that neither list shows one type only.
    """
    order = sorted(range(len(items.ids)), key=lambda n: (_faults(items, n), items.rows[n][SAID]), reverse=True)
    wrong = [n for n in order if not items.rows[n][RIGHT]]
    right = sorted((n for n in order if items.rows[n][RIGHT]), key=lambda n: len(captions[items.ids[n]]), reverse=True)
    chosen = ([items.ids[n] for n in _by_turns(items, found)[:rows]] for found in (wrong, right))
    worst, best = ([Shown(pair, captions[pair], items.is_right(pair)) for pair in pairs] for pairs in chosen)
    return worst, best


def _faults(items: ItemScores, number: int) -> float:
    row = items.rows[number]
    return float(row[TRUE] - row[FOUND] + row[HALLUCINATED])


def _by_turns(items: ItemScores, numbers: Sequence[int]) -> list[int]:
    """The same numbers: the first of each change type that is read in their captions, then the second of each, …."""
    seen: dict[str | None, int] = {}
    turns = []
    for place, number in enumerate(numbers):
        kind = items.readings[items.ids[number]].type
        seen[kind] = seen.get(kind, 0) + 1
        turns.append((seen[kind], place, number))
    return [number for *_, number in sorted(turns)]


def save_sheet(worst: Sequence[Shown], best: Sequence[Shown], heldout: HeldOut, file: Path) -> None:
    """Writes one PNG: mistakes on the left, right captions on the right. Raises UserError when it cannot be written."""
    width = 2 * SIDE + 3 * GAP
    height = SIDE + GAP + LINES * LINE
    rows = max(len(worst), len(best), 1)
    sheet = Image.new("RGB", (2 * width, rows * height + 2 * LINE), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, colour, shown) in enumerate((("worst", WRONG, worst), ("best", GOOD, best))):
        draw.text((column * width + GAP, 2), title, colour, ImageFont.load_default())
        for row, one in enumerate(shown):
            _draw_pair(sheet, draw, one, heldout, (column * width + GAP, row * height + 2 * LINE))
    try:
        sheet.save(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None


def _draw_pair(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, one: Shown, heldout: HeldOut, at: tuple[int, int]
) -> None:
    """Both images, the caption in the colour of its verdict, and the reference below where it is wrong."""
    left, top = at
    images = heldout.sample(one.pair).images
    for number, role in enumerate(("before", "after")):
        image = Image.open(io.BytesIO(images[role])).convert("RGB").resize((SIDE, SIDE))
        sheet.paste(image, (left + number * (SIDE + GAP), top))
    text = textwrap.wrap(one.caption or "(nothing)", 42)
    truth = [] if one.right else textwrap.wrap(f"truth: {heldout.references[one.pair][0]}", 42)
    lines = [(line, GOOD if one.right else WRONG) for line in text] + [(line, INK) for line in truth]
    for number, (line, colour) in enumerate(lines[:LINES]):
        draw.text((left, top + SIDE + 2 + number * LINE), line, colour, ImageFont.load_default())

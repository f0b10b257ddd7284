"""A contact sheet of rows as the model sees them: preprocessed images, text, and the layout of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from onediff.data.contact_sheet import cell, grid, save, wrapped
from onediff.data.native import unpatched
from onediff.data.prompts import DELTA, IMAGE
from onediff.data.rows import TokenRow

SIDE = 168
WIDTH = 2 * SIDE + 4
COLUMNS = 3
LINES = 9
GAP = 10
COLOURS = {"prompt": "#9aa5b1", "before": "#2f6fde", "after": "#e07b00", "image": "#2f6fde", "delta": "#7a3fc4"}
ANSWER = "#1f9d55"


class Span(NamedTuple):
    """Adjacent tokens of one kind: text of the `prompt`, `before`, `after`, `image`, `delta`, or the `answer`."""

    kind: str
    tokens: int
    text: str


def spans(row: TokenRow, tokenizer: Any) -> list[Span]:
    """The spans of a row, in order."""
    found: list[Span] = []
    images = zip(("before", "after") if row.is_pair else ("image",), row.image_tokens, strict=False)
    tokens = zip(row.token_ids.tolist(), row.is_target.tolist(), strict=True)
    for (place, target), group in groupby(tokens, key=lambda token: (min(token[0], 0), token[1])):
        ids = [token for token, _ in group]
        if place == IMAGE:
            left = len(ids)
            while left:
                role, length = next(images)
                found.append(Span(role, length, ""))
                left -= length
        elif place == DELTA:
            found.append(Span("delta", len(ids), ""))
        else:
            found.append(Span("answer" if target else "prompt", len(ids), tokenizer.decode(ids)))
    return found


def layout(row: TokenRow, tokenizer: Any) -> str:
    """One line: `3 prompt + 576 before + 576 after + 64 delta + 12 prompt + 9 answer = 1240 tokens`."""
    parts = " + ".join(f"{span.tokens} {span.kind}" for span in spans(row, tokenizer))
    return f"{parts} = {len(row.token_ids)} tokens" + (", cut" if row.was_cut else "")


def packed_layout(samples: Sequence[TokenRow], tokens: int) -> list[str]:
    """The tokens of each sample of a packed row, as `tokens 0 to 1,239`, and of the padding after them."""
    starts = list(accumulate((len(sample.token_ids) for sample in samples), initial=0))
    places = [f"tokens {start:,} to {end - 1:,}" for start, end in pairwise(starts)]
    return places + ([f"tokens {starts[-1]:,} to {tokens - 1:,}"] if starts[-1] < tokens else [])


def save_sheet(rows: Sequence[Sequence[TokenRow]], tokenizer: Any, file: Path, pack: int | None = None) -> None:
    """Writes the samples of these rows as one PNG, with a bar above the samples of each packed row.

    Raises UserError if it cannot be written.
    """
    if pack is None:
        parts = [grid([_cell(sample, tokenizer) for samples in rows for sample in samples], COLUMNS, GAP)]
    else:
        parts = []
        for number, samples in enumerate(rows, 1):
            places = packed_layout(samples, pack)[: len(samples)]
            cells = [_cell(sample, tokenizer, place) for sample, place in zip(samples, places, strict=True)]
            parts.append(_strip(number, samples, tokenizer, pack, COLUMNS * (WIDTH + GAP) + GAP))
            parts.append(grid(cells, COLUMNS, GAP))
    sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    save(sheet, file)


def _strip(number: int, samples: Sequence[TokenRow], tokenizer: Any, pack: int, width: int) -> Image.Image:
    """A bar that shows a packed row to scale: its samples, each followed by a black line, and the padding in white."""
    strip = Image.new("RGB", (width, 40), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(12)
    filled = sum(len(sample.token_ids) for sample in samples)
    draw.text((GAP, 6), f"row {number}: {len(samples)} samples, {filled:,} of {pack:,} tokens", "black", font)
    inside, start = width - 2 * GAP - 1, 0
    draw.rectangle((GAP, 24, GAP + inside, 38), "white", "black")
    for sample in samples:
        for part in spans(sample, tokenizer):
            ends = [GAP + at * inside // pack for at in (start, start + part.tokens)]
            draw.rectangle((ends[0], 24, max(ends), 38), COLOURS.get(part.kind, ANSWER))
            start += part.tokens
        draw.rectangle((GAP + start * inside // pack - 1, 24, GAP + start * inside // pack, 38), "black")
    return strip


def _cell(row: TokenRow, tokenizer: Any, place: str = "") -> Image.Image:
    """Images, a bar of the row's tokens to scale, the sample's id and place, the layout, the prompt and the answer."""
    parts = spans(row, tokenizer)
    asked = " ".join(part.text.strip() for part in parts if part.kind == "prompt")[-120:]
    answer = " ".join(part.text.strip() for part in parts if part.kind == "answer")
    lines = [
        (", ".join(row.ids) + (f" at {place}" if place else ""), "black"),
        *wrapped(layout(row, tokenizer), SIDE, 3, "#52606d"),
        *wrapped(f"… {asked}", SIDE, 2, "#52606d"),
        *wrapped(answer, SIDE, 3, ANSWER),
    ]
    made = cell(list(map(Image.fromarray, whole_images(row))), lines, SIDE, LINES, room=18, ground="#f4f5f7")
    draw, start = ImageDraw.Draw(made), 0
    for part in parts:
        ends = [at * (WIDTH - 1) // len(row.token_ids) for at in (start, start + part.tokens)]
        draw.rectangle((ends[0], SIDE + 4, max(ends), SIDE + 13), COLOURS.get(part.kind, ANSWER))
        start += part.tokens
    return made


def whole_images(row: TokenRow) -> list[NDArray[np.uint8]]:
    """`[height, width, 3]` of each image as the model sees it; with `fit: tiles`, the overview."""
    if not row.planes:
        return [pixels.permute(1, 2, 0).numpy() for pixels in row.images]
    found = []
    for plane, inputs in zip(row.planes, row.images.split([plane.inputs for plane in row.planes]), strict=True):
        if plane.shape is None:
            found.append(inputs[0].permute(1, 2, 0).numpy())
        else:
            found.append(unpatched(inputs.numpy(), plane.shape))
    return found

"""`onediff data show`: the sheet and the layout say what the model gets."""

import numpy as np
import pytest
from PIL import Image
from streams import DELTA_TOKENS, PICTURE_TOKENS, row_maker, stream, tokenizer, write_set

from onediff.cli.data_show import in_order, lengths
from onediff.data.sheet import SIDE, layout, save_sheet, spans


@pytest.mark.parametrize("kind", ["pair", "single", "text"])
def test_the_layout_names_every_token(tmp_path, kind):
    made = stream({write_set(tmp_path / kind, [3], kind): 1.0}, 1)
    row = made.row(0, 0)
    found = spans(row, tokenizer())
    assert sum(span.tokens for span in found) == len(row.token_ids)
    assert [span.tokens for span in found if span.kind == "answer"] == [int(row.is_target.sum())]
    pictures = {"pair": ["before", "after", "delta"], "single": ["picture"], "text": []}[kind]
    assert [span.kind for span in found if span.kind not in ("words", "answer")] == pictures
    assert all(span.tokens == PICTURE_TOKENS for span in found if span.kind in ("before", "after", "picture"))
    assert ("delta" in pictures) == (f"{DELTA_TOKENS} delta" in layout(row, tokenizer()))
    assert layout(row, tokenizer()).endswith(f"= {len(row.token_ids)} tokens")


def test_the_sheet_shows_the_rows_own_pixels(tmp_path):
    folder = write_set(tmp_path / "pairs", [5], "pair")
    rows = [row for row, _ in zip(in_order(stream({folder: 1.0}, 2), 2), range(4), strict=False)]
    assert [row.ids for row in rows] == [stream({folder: 1.0}, 2).row(n % 2, n // 2).ids for n in range(4)]
    save_sheet(rows, row_maker().prompter.tokenizer, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    shown = sheet[10 : 10 + SIDE : SIDE // 8, 10 : 10 + SIDE : SIDE // 8]  # one pixel of each of the picture's
    assert np.array_equal(shown, rows[0].pictures[0].permute(1, 2, 0).numpy())


def test_lengths_tell_the_padding():
    assert lengths([10, 20, 5, 5], 2).endswith("padding in micro-batches of 2: 20.0%")
    assert "min 5, median 7.5, p95 10, max 20" in lengths([10, 20, 5, 5], 2)

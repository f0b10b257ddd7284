"""`onediff data show`: the sheet and the layout say what the model gets."""

import numpy as np
import pytest
from PIL import Image
from streams import DELTA_TOKENS, PICTURE_TOKENS, row_maker, stream, tokenizer, write_set

from onediff.cli.data_show import described, in_order
from onediff.data.packing import Packer
from onediff.data.sheet import SIDE, layout, packed_layout, save_sheet, spans


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
    assert [row.ids for (row,) in rows] == [stream({folder: 1.0}, 2).row(n % 2, n // 2).ids for n in range(4)]
    save_sheet(rows, row_maker().prompter.tokenizer, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    shown = sheet[10 : 10 + SIDE : SIDE // 8, 10 : 10 + SIDE : SIDE // 8]  # one pixel of each of the picture's
    assert np.array_equal(shown, rows[0][0].pictures[0].permute(1, 2, 0).numpy())


def test_packed_rows_are_shown_as_they_lie(tmp_path):
    """The text and the bar say where each sample of a row begins and what is left of it."""
    folders = {write_set(tmp_path / "pairs", [5], "pair"): 1.0}
    made = stream(folders, 2, pack=68)
    rows = [row for row, _ in zip(in_order(made, 2), range(2), strict=False)]

    assert [row.ids for row in rows[0]] == [row.ids for row in Packer(made, 68).row(0, (0,))[0]]
    lengths = [len(sample.token_ids) for sample in rows[0]]
    assert len(lengths) > 1 and sum(lengths) < 68, "the test needs several samples and some padding"
    lines = list(described(1, rows[0], made, tokenizer()))
    assert lines[0] == f"row 1: {len(lengths)} samples, {sum(lengths)} of 68 tokens"
    assert lines[1].startswith(
        f"  tokens 0 to {lengths[0] - 1}: {made.sources[rows[0][0].source].name}  {rows[0][0].ids[0]}: "
    )
    assert lines[2].startswith(f"  tokens {lengths[0]} to {lengths[0] + lengths[1] - 1}: ")
    assert lines[-1] == f"  tokens {sum(lengths)} to 67: padding"
    assert packed_layout(rows[0], sum(lengths)) == packed_layout(rows[0], 68)[:-1], "a full row has no padding"
    save_sheet(rows, tokenizer(), tmp_path / "sheet.png", 68)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    bar = sheet[31, 11:-11]
    filled = np.flatnonzero((bar != 255).any(1)).max() / len(bar)
    assert filled == pytest.approx(sum(lengths) / 68, abs=0.01)

"""`onediff data show`: the sheet and the layout show what the model sees."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from streams import DELTA_TOKENS, IMAGE_TOKENS, add, make_processor, members, row_at, stream, tokenizer, write_set

from onediff.cli.data_show import described, in_order
from onediff.data.lanes import SamplePlace
from onediff.data.named import name_of, row_named
from onediff.data.packing import Packer
from onediff.data.sheet import SIDE, layout, packed_layout, save_sheet, spans
from onediff.errors import UserError


@pytest.mark.parametrize("kind", ["pair", "single", "text"])
def test_the_layout_names_every_token(tmp_path, kind):
    made = stream({write_set(tmp_path / kind, [3], kind): 1.0}, 1)
    row = row_at(made, 0, 0)
    found = spans(row, tokenizer())
    assert sum(span.tokens for span in found) == len(row.token_ids)
    assert [span.tokens for span in found if span.kind == "answer"] == [int(row.is_target.sum())]
    images = {"pair": ["before", "after", "delta"], "single": ["image"], "text": []}[kind]
    assert [span.kind for span in found if span.kind not in ("prompt", "answer")] == images
    assert all(span.tokens == IMAGE_TOKENS for span in found if span.kind in ("before", "after", "image"))
    assert ("delta" in images) == (f"{DELTA_TOKENS} delta" in layout(row, tokenizer()))
    assert layout(row, tokenizer()).endswith(f"= {len(row.token_ids)} tokens")


def test_the_sheet_shows_the_rows_own_pixels(tmp_path):
    folder = write_set(tmp_path / "pairs", [5], "pair")
    rows = [row for row, _ in zip(in_order(stream({folder: 1.0}, 2), 2), range(4), strict=False)]
    assert [row.ids for (row,) in rows] == [row_at(stream({folder: 1.0}, 2), n % 2, n // 2).ids for n in range(4)]
    save_sheet(rows, make_processor().prompter.tokenizer, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    shown = sheet[10 : 10 + SIDE : SIDE // 8, 10 : 10 + SIDE : SIDE // 8]  # one pixel of each of the image's
    assert np.array_equal(shown, rows[0][0].images[0].permute(1, 2, 0).numpy())


def test_the_sheet_shows_the_prompt_and_the_answer(tmp_path):
    """Other words in either change the sheet; their number, and so the line of the layout, stays the same."""
    row = row_at(stream({write_set(tmp_path / "pairs", [1], "pair"): 1.0}, 1), 0, 0)
    text = row.token_ids >= 0
    word = int(row.token_ids[text & ~row.is_target][-1])
    shown = []
    for replaced in (torch.zeros_like(text), text & ~row.is_target, row.is_target):
        same = replace(row, token_ids=torch.where(replaced, word, row.token_ids))
        assert layout(same, tokenizer()) == layout(row, tokenizer())
        save_sheet([[same]], tokenizer(), tmp_path / "sheet.png")
        shown.append((tmp_path / "sheet.png").read_bytes())
    assert len(set(shown)) == 3


def test_packed_rows_are_shown_with_their_layout(tmp_path):
    """The text and the bar say where each sample of a row begins and what is left of it."""
    folders = {write_set(tmp_path / "pairs", [5], "pair"): 1.0}
    made = stream(folders, 2, pack=68)
    rows = [row for row, _ in zip(in_order(made, 2), range(2), strict=False)]

    assert [row.ids for row in rows[0]] == [made.one(0, index).ids for index in Packer(made, 68).chosen(0, (0,), [])[0]]
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


@pytest.mark.parametrize(
    ("kind", "couple", "pack"), [("pair", False, None), ("single", True, None), ("text", False, 90)]
)
def test_a_row_made_from_its_name_is_the_row_that_training_reads(tmp_path, kind, couple, pack):
    """Data set, shard and key are enough to make it again, in a later pass and coupled or packed too."""
    made = stream({write_set(tmp_path / "some", [5, 4], kind): 2.0, write_set(tmp_path / "more", [6], kind): 1.0}, 2)
    made.couple, made.pack = couple, pack
    again = 0
    for samples, _ in zip(in_order(made, 2), range(30), strict=False):
        for row in samples:
            name = name_of(made, row.source, row.places)
            same = row_named(made, name)
            again += "@" in name
            assert (same.ids, same.source) == (row.ids, row.source)
            for field in ("token_ids", "is_target", "images"):
                assert torch.equal(getattr(same, field), getattr(row, field)), name
    assert again, "the test needs a second pass"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other/part-000.tar:000001", "no data set 'other' in this phase, only some"),
        ("some/part-009.tar:000001", "has no such shard"),
        ("some/part-000.tar:000009", "part-000.tar has no sample with the key '000009'"),
        ("some/part-000.tar:000001+some/part-000.tar:000002", "names 2 samples; give one"),
        ("some/part-000.tar:000003", "cannot be used"),
    ],
)
def test_a_name_without_a_sample_is_refused_with_one_line(tmp_path, name, told):
    made = stream({write_set(tmp_path / "some", [5], "pair", faults={3: "bad_image"}): 1.0}, 1)
    with pytest.raises(UserError, match=told) as refused:
        row_named(made, name)
    assert str(refused.value).startswith(f"--sample {name}: ")


def test_two_samples_with_the_same_key_have_different_names(tmp_path):
    folder = write_set(tmp_path / "some", [2])
    with tarfile.open(folder / "part-000.tar", "a") as tar:
        for suffix, data in members("text", 7, "some").items():
            add(tar, f"000001.{suffix}", data)
    made = stream({folder: 1.0}, 1)
    names = [name_of(made, 0, [SamplePlace(0, 0, sample)]) for sample in range(3)]
    assert names[1:] == ["some/part-000.tar:000001", "some/part-000.tar:#2"]
    assert [row_named(made, name).ids for name in names] == [("some/0",), ("some/1",), ("some/7",)]

"""data_prep.plan: rows are read once for all tasks, and what was made from other rows or images is made again."""

import dataclasses
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from raw_data import encoded, numbered_images, put, table
from test_readers import convert as command
from test_writer import contents

from data_prep.convert import convert
from data_prep.plan import Choices
from data_prep.readers import Inputs, Reader, reader
from data_prep.share import Share
from onediff.data.sample import parse_sample
from onediff.data.stream import Source

ROWS = [
    {"before": f"{a}.png", "after": f"{b}.jpg", "caption": f"{a} to {b}", "site": a} for a in range(6) for b in range(6)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_images(tmp_path)


def counting(readings: list[int]) -> Reader:
    """The generic reader, which notes every reading of the table."""
    plain = reader("generic")

    def batches(inputs: Inputs):
        readings.append(threading.get_ident())
        yield from plain.batches(inputs)

    return dataclasses.replace(plain, batches=batches)


def test_tasks_that_share_the_work_read_the_rows_once_and_so_does_putting_together(folder: Path) -> None:
    readings: list[int] = []
    path = table(folder / "t.csv", [*ROWS, {**ROWS[7], "caption": "again"}])
    fixed = {"choices": Choices(hold_out=0.2, hold_out_by="site"), "shard_samples": 4, "seed": 3, "progress": False}

    def make(out: Path, share: Share | None = None):
        return convert(counting(readings), Inputs(path, folder), out, processes=1, share=share, **fixed)

    alone = make(folder / "alone")
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda n: make(folder / "shared", Share(n, 4)), range(4)))
    assert len(readings) == 2
    assert sum(report.tally.read for each in reports for report in each) == sum(r.tally.read for r in alone) == 36
    together = make(folder / "shared")
    assert len(readings) == 2, "putting together reads no row"
    assert [report.tally.noted["merged_row"] for report in together] == [r.tally.noted["merged_row"] for r in alone]
    for split in ("train", "test"):
        assert contents(folder / "shared" / split) == contents(folder / "alone" / split)
    assert sorted(file.name for file in (folder / "shared").iterdir()) == ["test", "train"]
    path.write_text(path.read_text() + "0.png,1.png,new,7\n")
    make(folder / "other", Share(0, 2))
    path.write_text(path.read_text() + "0.png,2.png,newer,8\n")
    make(folder / "other", Share(1, 2))
    assert len(readings) == 4, "another table needs another plan"


@pytest.mark.parametrize("given", ["annotations", "images"])
def test_a_table_below_the_given_folder_that_changes_between_shares_is_read_again(folder: Path, given: str) -> None:
    edits = [{"input": f"{n}.png", "output": f"{n + 1}.png", "instruction": f"make it {n}"} for n in range(4)]
    aurora = folder / "data" / "kubric" / "train.json"
    put(aurora, edits)
    inputs = Inputs(folder, folder) if given == "annotations" else Inputs(None, folder)
    out, fixed = folder / "out", {"shard_samples": 1, "processes": 1, "progress": False}
    convert(reader("aurora"), inputs, out, share=Share(0, 2), **fixed)
    plans = set(out.glob(".tmp-rows/plan-*"))
    convert(reader("aurora"), inputs, out, share=Share(1, 2), **fixed)
    assert set(out.glob(".tmp-rows/plan-*")) == plans
    put(aurora, [{**edit, "instruction": "make it red"} for edit in edits])
    convert(reader("aurora"), inputs, out, share=Share(1, 2), **fixed)
    (report,) = convert(reader("aurora"), inputs, out, **fixed)
    source = Source.open("aurora", report.manifest.folder, lanes=1, seed=0, block=1)
    captions = {parse_sample(source.shards.read(shard, 0)).captions for shard in range(4)}
    assert captions == {("make it red",)}


def test_a_set_made_from_images_that_have_changed_is_made_again_where_that_is_asked_for(folder: Path, capsys) -> None:
    words = ("--table", table(folder / "t.csv", ROWS[:4]))
    assert command(capsys, "generic", folder / "out", *words)[0] == 0
    assert command(capsys, "generic", folder / "out", *words)[0] == 0
    put(folder / "0.png", encoded(9, "PNG", 90, 90))
    code, _, error = command(capsys, "generic", folder / "out", *words)
    assert code == 2 and "was written from other inputs or options; remove it, add --overwrite" in error
    assert command(capsys, "generic", folder / "out", *words, "--overwrite")[0] == 0


def test_a_table_read_by_column_gives_the_samples_of_one_read_row_by_row(folder: Path) -> None:
    draw = random.Random(0)
    names = ["0.png", "1.jpg", "2.png", "./3.jpg", "4.PNG", "nan", "", "gone.png", " 5.jpg "]
    cells = {"before": names, "after": names, "split": ["train", "", "valid", "Test"], "site": ["x", "y", ""]}
    cells |= {"caption": ['a, "b"', '["one", "two"]', "", "None"], "caption_2": ["c", ""]}
    rows = [{name: draw.choice(values) for name, values in cells.items()} for _ in range(300)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "t.parquet")
    lines = put(folder / "t.jsonl", "\n".join(map(json.dumps, rows)))
    by_column, by_row = reader("generic"), dataclasses.replace(reader("generic"), batches=None)
    for path in (table(folder / "t.csv", rows), lines, folder / "t.parquet"):
        for choices in (Choices(allow_leakage=True), Choices((), 0.3, "site", allow_leakage=True)):
            made = []
            for kind in (by_column, by_row):
                out = folder / f"out-{len(list(folder.iterdir()))}"
                reports = convert(kind, Inputs(path, folder), out, choices=choices, shard_samples=7, processes=1)
                manifests = [report.manifest for report in reports]
                leakage = [manifest.extra.get("leakage") for manifest in manifests]
                made.append(([m.shards for m in manifests], [report.tally for report in reports], leakage))
            assert made[0] == made[1], (path, choices)

"""What other tools wrote trains the demo's model without a line written by hand."""

import math
from pathlib import Path

import pyarrow
import pytest
import small_run
from test_foreign_formats import img2dataset, pairs_table, saved_to_disk


@pytest.mark.long
def test_tars_of_img2dataset_and_a_folder_of_datasets_train_the_demo_for_ten_steps(tmp_path: Path) -> None:
    img2dataset(tmp_path / "laion/00000.tar", 0, 12)
    rows: pyarrow.Table = pairs_table(range(12))
    for split in ("train", "test"):
        saved_to_disk(tmp_path / "saved" / split, rows.slice(0, 8) if split == "train" else rows.slice(8))
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for words in (
        ["webdataset", "laion", "--out", "sets/singles"],
        ["hf", "saved", "--columns", "id=img_id", "--out", "sets/pairs"],
    ):
        done = small_run.onediff(["data", "convert", *words, "--processes", "1"], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    done = small_run.train(run, tmp_path / "sets", 10, "--processes", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    for phase in small_run.PHASES:
        losses = small_run.metrics(run, phase)
        assert max(losses) == 10 and all(map(math.isfinite, losses.values()))

"""The main job on somebody's own images: tables → shards → both phases → scores → a caption."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import PHASES, metrics, onediff

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry", "cat")


def photographs(folder: Path) -> list[Path]:
    """scikit-image's colour photographs that come inside its package, as JPEG files."""
    skimage = pytest.importorskip("skimage.data")
    made = []
    for name in PHOTOGRAPHS:
        try:
            image = getattr(skimage, name)()
        except (OSError, ValueError, ModuleNotFoundError):
            continue  # not in the package, and nothing is downloaded here
        made.append(folder / f"{name}.jpg")
        Image.fromarray(image[:, :, :3]).save(made[-1])
    return made


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_photographs_and_real_pairs_train_score_and_caption(real_data, tmp_path):
    files = photographs(tmp_path)
    assert len(files) >= 3
    pairs, singles = [], []
    for number, file in enumerate(files):
        darker = file.with_name(f"{file.stem}-dark.png")
        Image.fromarray((np.asarray(Image.open(file)) * 0.6).astype(np.uint8)).save(darker)
        split = "test" if number == 0 else "train"
        pairs.append({"before": file.name, "after": darker.name, "caption": "it is darker", "split": split})
        singles.append({"image": file.name, "caption": f"a photograph: {file.stem}", "split": "train"})
    clevr, edits = real_data / "clevr-change", real_data / "instruct-pix2pix" / "0000014"
    real = [
        (clevr / "CLEVR_new_000000.png", clevr / "CLEVR_new_000000_del.png", "the grey sphere is gone", "train"),
        (edits / "10483310_0.jpg", edits / "10483310_1.jpg", "it is drawn in another way", "train"),
        (edits / "975835724_0.jpg", edits / "975835724_1.jpg", "it is drawn in another way", "test"),
    ]
    for before, after, caption, split in real:
        for file in (before, after):
            shutil.copy(file, tmp_path / file.name)
        pairs.append({"before": before.name, "after": after.name, "caption": caption, "split": split})
    tables = {
        "pairs": write_table(tmp_path / "pairs.csv", pairs),
        "singles": write_table(tmp_path / "singles.csv", singles),
    }
    for name, table in tables.items():
        words = ["data", "convert", "generic", "--table", str(table), "--out", f"data/mine/{name}"]
        done = onediff(words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    small = [f"phases.{phase}.steps=3" for phase in PHASES] + ["data.workers=0", "tracking.live=false"]
    small += ["model.language.tokenizer.vocabulary=300", "evaluation.max_new_tokens=8"]
    done = onediff(["train", "configs/own_pairs.yaml", *small, "--processes", "2"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fit: pad\n" in (tmp_path / "runs" / "own-pairs" / "config.yaml").read_text()
    assert [len(metrics(tmp_path / "runs" / "own-pairs", phase)) for phase in PHASES] == [3, 3, 3]
    done = onediff(["evaluate", "runs/own-pairs"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "CIDEr" in done.stdout
    images = [str(real[2][0]), str(real[2][1])]
    done = onediff(["caption", *images, "--model", "runs/own-pairs", "--max-new-tokens", "8"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1

"""`onediff data compose`: composed pairs as data sets on disk."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage", reason="the photographs come with scikit-image")

from coco_masks import decode_mask

from onediff.cli import main
from onediff.data.manifest import read_manifest


def compose(out, *words):
    return main(["data", "compose", "--out", str(out), *words])


def records(folder):
    """The JSON records and the images of a split."""
    manifest = read_manifest(folder)
    found = {}
    for shard in manifest.shards:
        with tarfile.open(manifest.path(shard)) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return list(found.values())


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    out = tmp_path_factory.mktemp("composed")
    words = ["--pairs", "24", "--size", "96", "--split-sizes", "train=2,test=1", "--licence", "CC0-1.0"]
    assert compose(out, *words, "--processes", "1", "--sheet", str(out / "sheet.png")) == 0
    return out


def test_splits_have_their_counts_and_share_no_background(composed):
    behind = {}
    for split, count in {"train": 16, "test": 8}.items():
        manifest = read_manifest(composed / split)
        assert (manifest.name, manifest.samples, manifest.licence) == ("composed", count, "CC0-1.0")
        behind[split] = {json.loads(sample["json"])["meta"]["background"] for sample in records(composed / split)}
    assert behind["train"]
    assert not behind["train"] & behind["test"]


def test_samples_hold_images_captions_masks_and_boxes(composed):
    for sample in records(composed / "train"):
        record = json.loads(sample["json"])
        assert record["task"] == "difference"
        assert len(record["captions"]) == 3
        for image in ("before", "after"):
            assert Image.open(io.BytesIO(sample[f"{image}.jpg"])).size == (96, 96)
            for piece in record["meta"][image]:
                left, top, right, bottom = piece["box"]
                mask = decode_mask(piece["mask"])
                assert mask.shape == (96, 96)
                assert mask[top:bottom, left:right].sum() == mask.sum() > 0


def test_the_sheet_shows_something(composed):
    sheet = np.asarray(Image.open(composed / "sheet.png"))
    assert min(sheet.shape[:2]) > 600
    assert sheet.std() > 40


def test_the_same_command_gives_the_same_bytes_and_another_seed_does_not(composed, tmp_path):
    words = ["--pairs", "24", "--size", "96", "--split-sizes", "train=2,test=1", "--processes", "2"]
    assert compose(tmp_path / "same", *words) == 0
    assert compose(tmp_path / "other", *words, "--seed", "1") == 0
    shard = "test/composed-test-000000.tar"
    assert (tmp_path / "same" / shard).read_bytes() == (composed / shard).read_bytes()
    assert (tmp_path / "other" / shard).read_bytes() != (composed / shard).read_bytes()


def test_single_images_name_every_object_at_its_place(tmp_path):
    words = ["--singles", "8", "--size", "96", "--split-sizes", "train=1", "--processes", "1"]
    assert compose(tmp_path / "out", *words) == 0
    for sample in records(tmp_path / "out" / "train"):
        record = json.loads(sample["json"])
        assert record["task"] == "caption"
        assert Image.open(io.BytesIO(sample["jpg"])).size == (96, 96)
        assert record["meta"]["objects"]
        for caption in record["captions"]:
            for thing in record["meta"]["objects"]:
                assert re.search(rf"(at|in|on) the {thing['place']} an? {thing['name']}\b", caption)


def test_a_recipe_is_obeyed(tmp_path):
    (tmp_path / "recipe.yaml").write_text("changes: {flip: 1}\nwordings: 1\nwidth: 128\nheight: 96\n")
    words = ["--pairs", "4", "--split-sizes", "train=1", "--jpeg", "0", "--recipe", str(tmp_path / "recipe.yaml")]
    assert compose(tmp_path / "out", *words) == 0
    for sample in records(tmp_path / "out" / "train"):
        record = json.loads(sample["json"])
        assert record["meta"]["change_type"] == "flip"
        assert len(record["captions"]) == 1
        assert Image.open(io.BytesIO(sample["after.png"])).size == (128, 96)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--pairs", "0"], "--pairs: 0: must be at least 1"),
        (["--singles", "0"], "--singles: 0: must be at least 1"),
        (["--singles", "5", "--sheet", "sheet.png"], "--sheet shows pairs"),
        (["--pairs", "5", "--cutouts", "missing"], "missing: no such file or folder"),
        (["--pairs", "5", "--size", "10"], "width"),
        (["--pairs", "5", "--jpeg", "200"], "--jpeg 200"),
    ],
)
def test_mistakes_are_one_clear_line(words, line, tmp_path, capsys):
    assert compose(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("onediff: error: ")
    assert line in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())

"""`onediff data render`: rendered scenes as data sets on disk."""

import filecmp
import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_prep.scenes import ScenesConfig, render_pair
from data_prep.scenes.samples import PairMaker
from data_prep.splits import split_counts
from onediff.cli import main
from onediff.data.manifest import read_manifest
from onediff.errors import UserError


def render(out, *words):
    return main(["data", "render", "--out", str(out), *words])


def records(folder):
    """The JSON records and images of a split, by key."""
    found = {}
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        with tarfile.open(manifest.path(shard)) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return found


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    out = tmp_path_factory.mktemp("rendered")
    assert render(out, "--pairs", "60", "--singles", "20", "--seed", "3", "--processes", "1") == 0
    return out


def test_both_data_sets_have_their_splits_and_counts(rendered):
    for name, counts in (
        ("pairs", {"train": 54, "val": 3, "test": 3}),
        ("singles", {"train": 18, "val": 1, "test": 1}),
    ):
        for split, count in counts.items():
            manifest = read_manifest(rendered / name / split)
            assert (manifest.name, manifest.split, manifest.samples) == (name, split, count)
            assert manifest.licence


def test_a_pair_on_disk_is_the_pair_of_the_function(rendered):
    found = records(rendered / "pairs" / "train")
    maker = PairMaker(3, "train", 0, ScenesConfig())
    pair = render_pair(ScenesConfig(), maker.series, 7)
    members = found["00000007"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(members["before.png"]))), pair.before)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(members["after.png"]))), pair.after)
    record = json.loads(members["json"])
    assert record["captions"] == pair.captions
    assert record["meta"] == json.loads(json.dumps(pair.meta))
    assert record["split"] == "train"


def test_the_split_train_can_differ_from_the_others(tmp_path):
    scenes = tmp_path / "scenes.yaml"
    scenes.write_text("changes: {move: 1}\ntrain: {changes: {swap: 1}}\n")
    words = ["--scenes", str(scenes), "--pairs", "8", "--split-sizes", "train=0.5,test=0.5", "--processes", "1"]
    assert render(tmp_path / "data", *words) == 0
    for split, kind in (("train", "swap"), ("test", "move")):
        found = records(tmp_path / "data" / "pairs" / split).values()
        assert {json.loads(members["json"])["meta"]["change_type"] for members in found} == {kind}


def test_no_scene_is_in_two_splits(rendered):
    scenes = {
        split: {
            json.dumps(json.loads(m["json"])["meta"]["before"]) for m in records(rendered / "pairs" / split).values()
        }
        for split in ("train", "val", "test")
    }
    assert len(scenes["train"]) == 54
    assert not scenes["train"] & (scenes["val"] | scenes["test"])
    assert not scenes["val"] & scenes["test"]


def test_the_number_of_processes_changes_no_byte(tmp_path):
    # More than a shard's worth, so that two processes have work.
    for processes in ("1", "2"):
        words = ["--pairs", "1100", "--split-sizes", "train=1", "--size", "32", "--processes", processes]
        assert render(tmp_path / processes, *words) == 0
    one, two = (tmp_path / processes / "pairs" / "train" for processes in ("1", "2"))
    names = sorted(path.name for path in one.iterdir())
    assert len([name for name in names if name.endswith(".tar")]) == 2
    assert sorted(path.name for path in two.iterdir()) == names
    assert filecmp.cmpfiles(one, two, names, shallow=False)[0] == names


def test_scenes_file_size_and_jpeg_are_obeyed(tmp_path):
    (tmp_path / "scenes.yaml").write_text("changes: {swap: 1}\nmax_objects: 3\n")
    words = ["--pairs", "5", "--scenes", str(tmp_path / "scenes.yaml"), "--size", "48", "--jpeg", "90"]
    assert render(tmp_path / "out", *words, "--split-sizes", "test=1") == 0
    for members in records(tmp_path / "out" / "pairs" / "test").values():
        assert json.loads(members["json"])["meta"]["change_type"] == "swap"
        assert Image.open(io.BytesIO(members["before.jpg"])).size == (48, 48)


def test_split_counts_add_up():
    assert split_counts("train=0.9,val=0.05,test=0.05", 1000) == {"train": 900, "val": 50, "test": 50}
    assert split_counts("a=1,b=1,c=1", 10) == {"a": 3, "b": 4, "c": 3}
    assert split_counts("train=9,test=1", 1) == {"train": 1}


@pytest.mark.parametrize("sizes", ["train", "train=-1", "train=0", "=1", "train=inf", "train=1,,"])
def test_split_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(UserError, match="--split-sizes"):
        split_counts(sizes, 10)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give --pairs N, --singles N or both"),
        (["--pairs", "5", "--size", "8"], "width"),
        (["--pairs", "5", "--scenes", "missing.yaml"], "missing.yaml: no such configuration"),
        (["--pairs", "5", "--jpeg", "101"], "--jpeg 101"),
    ],
)
def test_mistakes_are_one_clear_line(words, line, tmp_path, capsys):
    assert render(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("onediff: error: ")
    assert line in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_an_unknown_key_of_the_scenes_comes_with_the_nearest_one(tmp_path, capsys):
    (tmp_path / "scenes.yaml").write_text("wording: 2\n")
    assert render(tmp_path / "out", "--pairs", "5", "--scenes", str(tmp_path / "scenes.yaml")) == 2
    assert "did you mean 'wordings'?" in capsys.readouterr().err


def test_scenes_too_alike_for_a_change_are_one_clear_line(tmp_path, capsys):
    (tmp_path / "scenes.yaml").write_text("alike: 1\nchanges: {swap: 1}\n")
    assert render(tmp_path / "out", "--pairs", "5", "--scenes", str(tmp_path / "scenes.yaml")) == 2
    assert re.fullmatch(
        r"onediff: error: changes\.swap: .* alike 1 and twins 0 allow no such change; lower .*\n",
        capsys.readouterr().err,
    )


def test_the_shipped_scenes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--pairs", "2", "--split-sizes", "test=1", "--scenes", "configs/scenes/demo.yaml"]
    assert render(tmp_path / "out", *words) == 0
    assert len(records(tmp_path / "out" / "pairs" / "test")) == 2

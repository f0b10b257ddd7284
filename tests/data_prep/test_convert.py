"""Conversions of data with faults: what is skipped is counted and bounded, and what stops the work is one line."""

import json
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_data import PAIR, encoded, numbered_images, put, table
from test_readers import convert, records

from onediff.data.manifest import read_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_images(tmp_path)


def test_more_unusable_rows_than_allowed_fail_the_conversion_and_a_larger_bound_goes_on(folder: Path, capsys) -> None:
    rows = [PAIR, *({**PAIR, "after": f"gone{n}.png"} for n in range(99))]
    words = ("--table", table(folder / "t.csv", rows))
    code, _, error = convert(capsys, "generic", folder / "out", *words)
    assert code == 2
    assert "99 of 100 rows were skipped (missing_image 99), more than --max-skipped 10% and 10; the first:" in error
    assert not (folder / "out/train").exists()
    assert convert(capsys, "generic", folder / "out", *words, "--max-skipped", "98")[0] == 2
    assert convert(capsys, "generic", folder / "out", *words, "--max-skipped", "99%")[0] == 0
    assert read_manifest(folder / "out/train").samples == 1
    code, _, error = convert(capsys, "generic", folder / "out", *words, "--max-skipped", "many")
    assert code == 2 and "'many' is neither a percentage, such as 1%, nor a number of rows" in error


def test_leakage_of_published_splits_is_recorded_in_both_manifests(tmp_path: Path, capsys) -> None:
    """Image-Editing-Request publishes two pairs in train and in val."""
    pairs = {"train": ("a", "b", "c"), "valid": ("c", "d")}
    for split, names in pairs.items():
        rows = [{"img0": f"{n}0.png", "img1": f"{n}1.png", "sents": ["brighter"], "uid": f"{split} {n}"} for n in names]
        if split == "valid":
            rows.append({"img0": "a0.png", "img1": "d1.png", "sents": ["redder"], "uid": "half"})
        put(tmp_path / f"{split}.json", rows)
    for number, name in enumerate(f"{n}{half}" for n in "abcd" for half in "01"):
        put(tmp_path / f"{name}.png", encoded(number))
    code, said, error = convert(capsys, "image-editing-request", tmp_path / "out", "--annotations", tmp_path)
    assert code == 0, error
    assert {"noted: in_two_splits 1", "noted: image_in_two_splits 1"} <= set(said.splitlines())
    leakage = {split: read_manifest(tmp_path / "out" / split).extra["leakage"] for split in ("train", "val")}
    assert leakage["val"] == {"train": {"same_images": 1, "one_image": 1}}
    assert leakage["train"] == {"val": {"same_images": 1, "one_image": 1}}
    assert records(tmp_path / "out/val")["valid c"]["meta"]["notes"] == ["in_two_splits"]


def test_a_bad_member_of_a_zip_costs_its_row_alone(folder: Path, capsys) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        path = folder / "images.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("./0.png", encoded(0))
            archive.writestr("sub\\1.png", encoded(1))
            archive.writestr("bad.png", encoded(2, "PNG", 200, 200))
        with zipfile.ZipFile(path) as archive:
            at = archive.getinfo("bad.png").header_offset + 45
        data = bytearray(path.read_bytes())
        data[at : at + 40] = b"\xff" * 40
        path.write_bytes(data)
        rows = [{**PAIR, "after": "sub/1.png"}, {**PAIR, "after": "bad.png"}]
        words = ("--table", table(folder / "t.csv", rows), "--images", path, "--overwrite")
        code, said, error = convert(capsys, "generic", folder / "out", *words)
        assert code == 0, error
        assert "bad_image: t.csv row 2: 'bad.png' cannot be unpacked" in said
        assert read_manifest(folder / "out/train").samples == 1


def test_a_zip_that_was_cut_short_is_one_line(folder: Path, capsys) -> None:
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", encoded(0))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 2] = 9
    path.write_bytes(data)
    code, _, error = convert(
        capsys, "generic", folder / "out", "--table", table(folder / "t.csv", [PAIR]), "--images", path
    )
    assert (code, error.count("\n")) == (2, 1) and "images.zip: an incomplete zip" in error


def test_folders_of_edits_that_never_came_whole_are_skipped_and_counted(tmp_path: Path, capsys) -> None:
    put(tmp_path / "01/prompt.json", {"input": "a cat", "edit": "make it a dog", "output": "a dog"})
    put(tmp_path / "01/metadata.jsonl", '{"seed": 5}\n')
    for number, name in enumerate(("5_0", "5_1")):
        put(tmp_path / f"01/{name}.jpg", encoded(number, "JPEG"))
    put(tmp_path / "02/prompt.json", {"input": "a cat", "edit": "make it a dog"})
    put(tmp_path / "03/metadata.jsonl", '{"seed": 5}\n')
    put(tmp_path / "04/prompt.json", "[1")
    put(tmp_path / "05/prompt.json", {"edit": "x"})
    put(tmp_path / "05/metadata.jsonl", '{"seed": 5}\n{"se')
    code, said, error = convert(capsys, "instruct-pix2pix", tmp_path / "out", "--images", tmp_path)
    assert code == 0, error
    assert said.splitlines()[2].split()[:4] == ["train", "5", "1", "4"]
    assert "skipped: incomplete 4" in said and "metadata.jsonl: cannot be read (No such file or directory)" in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--out", "t.csv/x"), "t.csv/x: cannot be written (Not a directory); choose another location"),
        (("--out", "/proc/none/x"), "/proc/none/x: cannot be written (No such file or directory)"),
        (("--out", "out", "--report", "."), ".: is a folder (--report); name a file"),
        (("--out", "out", "--report", "t.csv/x.json"), "t.csv/x.json: cannot be written (File exists)"),
        (("--out", "out", "--report", "/dev/full"), "/dev/full: cannot be written (No space left on device)"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(folder: Path, words, line: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    table(folder / "t.csv", [PAIR])
    code, _, error = convert(capsys, "generic", folder / "unused", "--table", "t.csv", *words)
    assert (code, error.count("\n")) == (2, 1)
    assert line in error


FULL_DISK = """
import resource, sys
from onediff.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(folder: Path, capsys) -> None:
    """A limit on the size of files stands in for the full disk: it fails in the middle of a shard in the same way."""
    for number in (6, 7):
        grain = np.random.default_rng(number).integers(0, 256, (100, 100, 3), np.uint8)
        Image.fromarray(grain).save(folder / f"{number}.png")
    path = table(folder / "t.csv", [PAIR, {"before": "6.png", "after": "7.png", "caption": "it grew"}])
    words = ["data", "convert", "generic", "--table", path, "--out", folder / "out", "--processes", "1"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    run = subprocess.run([sys.executable, "-c", FULL_DISK, *words], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(
        f"onediff: error: {folder / 'out'}: cannot be written (File too large)"
    )
    assert "Traceback" not in run.stderr and not list(folder.glob("out/.tmp-train/*.tar"))
    assert convert(capsys, "generic", folder / "out", "--table", path)[0] == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["train"]


def test_statistics_of_a_data_set_that_lacks_a_shard_are_one_line(folder: Path, capsys) -> None:
    from onediff.cli import main

    convert(capsys, "generic", folder / "out", "--table", table(folder / "t.csv", [PAIR]))
    (shard,) = (folder / "out/train").glob("*.tar")
    shard.unlink()
    assert main(["data", "stats", str(folder / "out")]) == 2
    assert f"{shard}: the shard is missing; 'onediff data check' lists" in capsys.readouterr().err


def test_absolute_paths_below_the_image_folder_are_paths_in_it(folder: Path, tmp_path_factory, capsys) -> None:
    elsewhere = tmp_path_factory.mktemp("tables")
    link = elsewhere / "link"
    link.symlink_to(folder)
    rows = [
        {"before": str(folder / "0.png"), "after": str(link / "1.png"), "caption": "one"},
        {"before": "2.png", "after": str(folder / "3.png"), "caption": "two"},
    ]
    path = table(elsewhere / "t.csv", rows)
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 2 and f"is not below the image folder {elsewhere}; name a folder that contains" in error
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", link)
    assert code == 0, error
    assert set(records(folder / "out/train")) == {"0-1", "2-3"}


def test_held_out_pairs_share_no_image_with_training(folder: Path, capsys) -> None:
    """Chains of overlapping pairs, and each pair in reverse order too."""
    rows = []
    for chain in range(20):
        for number in range(3):
            put(folder / f"{chain}/{number}.png", encoded(chain * 3 + number))
        for a, b in ((0, 1), (1, 0), (1, 2), (2, 1)):
            rows.append({"before": f"{chain}/{a}.png", "after": f"{chain}/{b}.png", "caption": "c", "site": chain % 5})
    path = table(folder / "t.csv", rows)
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--hold-out", "0.1")
    assert code == 0, error
    train, test = (set(records(folder / "out" / split)) for split in ("train", "test"))
    assert (len(train), len(test)) == (72, 8)
    assert {id.partition("-")[0] for id in train}.isdisjoint(id.partition("-")[0] for id in test)
    words = ("--table", path, "--hold-out", "0.2", "--hold-out-by", "site")
    code, _, error = convert(capsys, "generic", folder / "sites", *words)
    assert code == 0, error
    sites = [
        {sample["meta"]["site"] for sample in records(folder / "sites" / split).values()} for split in ("train", "test")
    ]
    assert (len(sites[0]), len(sites[1])) == (4, 1) and sites[0].isdisjoint(sites[1])


def test_pairs_that_are_all_connected_cannot_be_held_out_by_image(folder: Path, capsys) -> None:
    rows = [{"before": "0.png", "after": f"{n}.png", "caption": "c"} for n in range(1, 6)]
    path = table(folder / "t.csv", rows)
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--hold-out", "0.2")
    assert code == 2 and "all pairs are connected by shared images; group them with --hold-out-by COLUMN" in error


def test_the_report_is_written_where_it_is_asked_for(folder: Path, capsys) -> None:
    path = folder / "new/report.json"
    convert(capsys, "generic", folder / "out", "--table", table(folder / "t.csv", [PAIR]), "--report", path)
    assert json.loads(path.read_text())[0]["written"] == 1
    _, said, _ = convert(capsys, "generic", folder / "out", "--table", folder / "t.csv", "--json")
    assert json.loads(said)[0]["written"] == 1
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "t.csv", "--json", "r.json")
    assert code == 2 and "--json prints, --report FILE writes" in error

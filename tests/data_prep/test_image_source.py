"""data_prep.image_source: images out of archives, and archives that are refused."""

import tarfile
import zipfile
from pathlib import Path

import pytest
from raw_data import PAIR, encoded, numbered_images, put, table, tar_with
from test_readers import convert, records

from onediff.data.index import read_index
from onediff.data.manifest import read_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_images(tmp_path)


HOSTILE = {
    "tar upwards": (lambda p: tar_with(p, "../1.png"), "member: the path '../1.png' leaves the image folder"),
    "tar absolute": (lambda p: tar_with(p, "/1.png"), "member: the path '/1.png' leaves the image folder"),
    "tar link": (lambda p: tar_with(p, "1.png", tarfile.SYMTYPE, "/etc/passwd"), "'1.png' is not a regular file"),
    "tar hard link": (lambda p: tar_with(p, "1.png", tarfile.LNKTYPE, "0.png"), "'1.png' is not a regular file"),
    "tar device": (lambda p: tar_with(p, "1.png", tarfile.CHRTYPE), "'1.png' is not a regular file"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_tar_of_images_is_refused(folder: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, line = HOSTILE[fault]
    archive = build(folder / "images.tar")
    code, _, error = convert(
        capsys, "generic", folder / "out", "--table", table(folder / "t.csv", [PAIR]), "--images", archive
    )
    assert code == 2
    assert line in error
    assert not list((folder / "out").iterdir())


def test_hostile_zips_are_refused_or_their_members_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(folder / "t.csv", [PAIR])
    with zipfile.ZipFile(folder / "up.zip", "w") as archive:
        archive.writestr("../1.png", b"x")
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", folder / "up.zip")
    assert (code, "member: the path '../1.png' leaves the image folder" in error) == (2, True)
    with zipfile.ZipFile(folder / "absolute.zip", "w") as archive:
        archive.writestr("/1.png", b"x")
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", folder / "absolute.zip")
    assert (code, "member: the path '/1.png' leaves the image folder" in error) == (2, True)
    for name, mode in (("link.zip", 0o120777), ("device.zip", 0o020666)):
        with zipfile.ZipFile(folder / name, "w") as archive:
            info = zipfile.ZipInfo("1.png")
            info.external_attr = mode << 16
            archive.writestr(info, "/etc/passwd")
        code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", folder / name)
        assert (code, "'1.png' is not a regular file; the archive is refused" in error) == (2, True)
    assert not list((folder / "out").iterdir())
    with zipfile.ZipFile(folder / "liar.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", encoded(0))
        archive.writestr("1.png", bytes(100_000))
    lying = (folder / "liar.zip").read_bytes().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    put(folder / "liar.zip", lying)
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", folder / "liar.zip")
    assert (code, "bad_image: t.csv row 1: '1.png' cannot be unpacked: Bad CRC-32" in error) == (2, True)
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", encoded(0))
        archive.writestr("1.png", bytes(300_000_000))
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", folder / "bomb.zip")
    assert code == 2
    assert "too_large: t.csv row 1: '1.png' has 300,000,000 bytes, more than" in error


def test_names_in_archives_are_found_as_those_in_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [PAIR, {**PAIR, "after": "2.png"}, {**PAIR, "after": "3.png"}]
    with zipfile.ZipFile(folder / "i.zip", "w") as archive:
        for number, name in enumerate(("0.PNG", "1.jpg", "2.png", "top/3.png")):
            archive.writestr(name, encoded(number, "JPEG" if name.endswith("jpg") else "PNG"))
    path = table(folder / "t.csv", rows)
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", folder / "i.zip")
    assert code == 0, error
    assert "noted: other_name 3" in said
    assert "no member '3.png' in" in said + error and "; there is 'top/3.png'" in said + error


def test_what_is_no_tar_or_zip_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(folder / "t.csv", [PAIR])
    for data, line in (
        (b"", "an empty file"),
        (b"\x1f\x8b..", "compressed with gzip; unpack it"),
        (b"x" * 999, "neither a tar"),
    ):
        put(folder / "i.tar", data)
        code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", folder / "i.tar")
        assert code == 2 and f"i.tar: {line}" in error


def test_images_from_a_plain_tar(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tar_with(folder / "images.tar", "1.png")
    path = table(folder / "t.csv", [PAIR])
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--images", archive)
    assert code == 0, error
    manifest = read_manifest(folder / "out/train")
    assert len(read_index(manifest.path(manifest.shards[0]))) == 1


def test_images_from_archives_in_the_image_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(folder / "shards/0.png", encoded(0))
    put(folder / "shards/1.png", encoded(1))
    tar_with(folder / "shards/000.tar", "./a/1.png")
    with zipfile.ZipFile(folder / "shards/001.ZIP", "w") as archive:
        archive.writestr("2.jpg", encoded(2, "JPEG"))
    rows = [
        {"before": "shards/000.tar#0.png", "after": "shards//000.tar#a/1.png", "caption": "both in a tar"},
        {"before": "3.png", "after": "shards/001.ZIP#2.jpg", "caption": "one in a zip"},
    ]
    path = table(folder / "t.csv", rows)
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 0, error
    found = records(folder / "out/train")
    assert {id: sample["members"] for id, sample in found.items()} == {
        "shards/000.tar#0-shards/000.tar#a/1": {"before.png", "after.png", "json"},
        "3-shards/001.ZIP#2": {"before.png", "after.jpg", "json"},
    }


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_tar_in_the_image_folder_is_refused(
    folder: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build, line = HOSTILE[fault]
    build(folder / "a.tar")
    path = table(folder / "t.csv", [{**PAIR, "after": "a.tar#0.png"}])
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 2
    assert line in error
    assert not list((folder / "out").iterdir())

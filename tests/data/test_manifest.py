"""onediff.data.manifest: what a folder of shards must be."""

import json
from pathlib import Path

import pytest
from test_index import FILES, tar_of

from onediff.data.manifest import build_manifest, file_sha256, read_manifest, write_manifest
from onediff.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two shards with three samples."""
    folder = tmp_path / "pairs" / "train"
    folder.mkdir(parents=True)
    tar_of(folder / "p-000000.tar", FILES)
    tar_of(folder / "p-000001.tar", {"c.json": b"{}"})
    write_manifest(build_manifest(folder, checksums=True))
    return folder


def change(folder: Path, **fields: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_what_is_written_is_read(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (manifest.name, manifest.split, manifest.samples) == ("pairs", "train", 3)
    assert [shard.samples for shard in manifest.shards] == [2, 1]
    assert manifest.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert manifest.shards[0].sha256 == file_sha256(folder / "p-000000.tar")
    before = (folder / "manifest.json").read_bytes()
    write_manifest(manifest)
    assert (folder / "manifest.json").read_bytes() == before
    assert not list(folder.glob(".tmp-*"))


def test_unknown_keys_are_kept(folder: Path) -> None:
    change(folder, inputs="abc")
    manifest = read_manifest(folder)
    assert manifest.extra == {"inputs": "abc"}
    write_manifest(manifest)
    assert json.loads((folder / "manifest.json").read_text())["inputs"] == "abc"


def test_shards_from_other_tools_need_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    manifest = read_manifest(folder)
    assert [(shard.name, shard.samples, shard.sha256) for shard in manifest.shards] == [
        ("p-000000.tar", 2, ""),
        ("p-000001.tar", 1, ""),
    ]
    assert not (folder / "manifest.json").exists()


def test_a_folder_that_is_not_a_data_set_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder of shards"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"it holds the splits train: name one, such as .*pairs/train"):
        read_manifest(folder.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no tar shards in this folder"):
        read_manifest(tmp_path / "empty")


def test_a_missing_or_changed_shard_is_named(folder: Path) -> None:
    shard = folder / "p-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data + bytes(512))
    with pytest.raises(UserError, match=rf"p-000001.tar: {len(data) + 512} bytes, but manifest.json says {len(data)}"):
        read_manifest(folder)
    shard.unlink()
    with pytest.raises(UserError, match=r"p-000001\.tar: the shard is missing, though manifest.json names it"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"schema": 2}, "schema 2, but this version of onediff reads schema 1"),
        ({"samples": 9}, "says 9 samples, but its shards add up to 3"),
        ({"shards": [{"name": "a"}]}, "not a manifest .KeyError: 'samples'"),
        ({"shards": [{"name": "../a.tar", "samples": 3, "bytes": 1}]}, "must be a file name in the same folder"),
        ({"shards": 3}, "not a manifest .TypeError"),
        ({"shards": [], "samples": 0}, "the data set has no samples"),
    ],
)
def test_a_wrong_manifest_is_one_clear_line(folder: Path, fields: dict[str, object], line: str) -> None:
    change(folder, **fields)
    with pytest.raises(UserError, match=line):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_file_that_is_not_a_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: (not a manifest|schema None)"):
        read_manifest(folder)

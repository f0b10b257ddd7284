"""onediff.data.index: samples found in tars from any tool, whole or damaged, and read by pread."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onediff.data.index import build_index, index_path, load_index, read_index, read_sample, save_index
from onediff.data.sample import BadSample
from onediff.errors import UserError

FILES = {"a.before.JPG": b"1" * 700, "a.after.jpg": b"2" * 512, "a.json": b"{}", "b.png": b"", "b.json": b"[1]"}


def tar_of(path: Path, files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def everything(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [(span.key, read_sample(fd, span)) for span in read_index(path)]
    finally:
        os.close(fd)


WANTED = [
    ("a", {"before.jpg": b"1" * 700, "after.jpg": b"2" * 512, "json": b"{}"}),
    ("b", {"png": b"", "json": b"[1]"}),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_are_read(tmp_path: Path, form: int) -> None:
    path = tar_of(tmp_path / "x.tar", FILES, form)
    assert everything(path) == WANTED
    assert build_index(path).damage == ()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, form: int) -> None:
    names = ["d" * 150 + "/" + "k" * 120, "ordner/schlüssel"]
    path = tar_of(tmp_path / "x.tar", {f"{name}.json": b"{}" for name in names}, form)
    assert everything(path) == [(name, {"json": b"{}"}) for name in names]


def test_tars_made_by_tar_with_folders_and_hidden_files(tmp_path: Path) -> None:
    for name, data in {**FILES, "sub/c.json": b"{}", "._a.json": b"mac", "README": b"x"}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    subprocess.run(["tar", "-cf", tmp_path / "x.tar", "-C", tmp_path / "in", "."], check=True)
    assert sorted(everything(tmp_path / "x.tar")) == sorted([*WANTED, ("sub/c", {"json": b"{}"})], key=lambda s: s[0])


def test_tars_made_by_webdataset(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        writer.write({"__key__": "a", "before.jpg": b"1", "json": b"{}"})
        writer.write({"__key__": "b", "json": b"[1]"})
    assert everything(tmp_path / "x.tar") == [("a", {"before.jpg": b"1", "json": b"{}"}), ("b", {"json": b"[1]"})]


def test_members_with_the_same_key_form_one_sample_even_if_they_are_apart(tmp_path: Path) -> None:
    files = {"a.json": b"1", "b.json": b"2", "a.png": b"3" * 9000, "b.png": b"4"}
    assert everything(tar_of(tmp_path / "x.tar", files)) == [
        ("a", {"json": b"1", "png": b"3" * 9000}),
        ("b", {"json": b"2", "png": b"4"}),
    ]


def test_a_repeated_key_starts_a_second_sample(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for data in (b"1", b"22"):
            info = tarfile.TarInfo("a.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert everything(path) == [("a", {"json": b"1"}), ("a", {"json": b"22"})]


def test_links_and_devices_are_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("a.json")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    index = build_index(path)
    assert len(index) == 0
    assert [line.split(": ", 1)[1][:27] for line in index.damage] == ["'a.json' is not a regular file"[:27]] * 3


def test_tars_joined_by_cat_are_read_to_the_end_and_reported(tmp_path: Path) -> None:
    first, second = (tar_of(tmp_path / f"{n}.tar", FILES) for n in (1, 2))
    joined = tmp_path / "x.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    assert everything(joined) == WANTED + WANTED
    (line,) = read_index(joined).damage
    assert f"another follows at byte {first.stat().st_size}; most programs read only the first" in line


def test_a_truncated_tar_yields_its_complete_samples(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", FILES)
    whole = path.read_bytes()
    second = build_index(path)[1]
    path.write_bytes(whole[: second.members[1].offset + 1])
    index = read_index(path)
    assert [span.key for span in index] == ["a", "b"]
    assert index[1].members == second.members[:1]
    assert index.damage == (f"byte {second.members[1].offset}: 'b.json' should have 3 bytes, but the tar ends after 1",)
    path.write_bytes(whole[: second.members[0].offset - 512])
    assert build_index(path).damage == (
        f"byte {second.members[0].offset - 512}: the tar has no end marker; it may be truncated",
    )


def test_a_damaged_header_is_reported(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", FILES)
    start = build_index(path)[1].members[0].offset - 512
    data = bytearray(path.read_bytes())
    data[start + 20] ^= 0x55
    path.write_bytes(data)
    index = build_index(path)
    assert [span.key for span in index] == ["a"]
    assert index.damage == (f"byte {start}: bad checksum; the rest is not read",)


def test_reading_beyond_the_end_is_a_bad_sample(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", FILES)
    span = build_index(path)[0]
    path.write_bytes(path.read_bytes()[: span.members[1].offset + 5])
    with path.open("rb") as file, pytest.raises(BadSample, match=r"a\.after\.jpg: the shard ends after 5 of 512 bytes"):
        read_sample(file.fileno(), span)


def test_a_stored_index_is_used_while_it_matches_the_tar_and_rebuilt_otherwise(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", FILES)
    first = read_index(path)
    assert list(load_index(index_path(path))) == list(first)
    # A marked index shows that the file is what is read.
    save_index(build_index(path), index_path(path))
    text = index_path(path).read_bytes().replace(b'"a","b"', b'"Q","b"', 1)
    index_path(path).write_bytes(text)
    assert read_index(path).keys == ["Q", "b"]
    tar_of(path, {"c.json": b"{}", "d.json": b"{}"})
    assert read_index(path).keys == ["c", "d"]
    # Same size, same names, other sizes inside.
    tar_of(path, {"c.json": b"{}   ", "e.json": b""})
    assert read_index(path).keys == ["c", "e"]
    # The same size, and the same first and last member: a caption in the middle was corrected.
    tar_of(path, {"c.json": b"{}", "d.json": b'{"caption": 1}', "e.json": b"{}"})
    read_index(path)
    later = index_path(path).stat().st_mtime_ns + 10**9
    tar_of(path, {"c.json": b"{}", "d.json": b'{"caption": "gone"}', "e.json": b"{}"})
    os.utime(path, ns=(later, later))
    assert read_index(path).members(1)[0].size == 19
    tar_of(path, {"c.json": b"{}   ", "e.json": b""})
    for spoiled in (b"", b"\x00\x01", index_path(path).read_bytes()[:-8], b"{}\n", b"[]\n"):
        index_path(path).write_bytes(spoiled)
        assert read_index(path).keys == ["c", "e"]


def test_a_read_only_folder_can_be_read(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", FILES)
    index_path(path).mkdir()  # Nothing can be written in its place, whoever runs this test.
    with pytest.raises(OSError):
        load_index(index_path(path))
    assert build_index(path).keys == read_index(path).keys == ["a", "b"]


def test_a_missing_tar_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tar: cannot open the shard"):
        read_index(tmp_path / "none.tar")


def test_a_stored_index_is_read_without_a_step_for_each_sample(tmp_path: Path) -> None:
    """So ten thousand samples load in milliseconds."""
    path = tar_of(tmp_path / "x.tar", {f"{n:05d}.{s}": b"" for n in range(2000) for s in ("jpg", "json")})
    read_index(path)
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(event))
    try:
        index = read_index(path)
    finally:
        sys.setprofile(None)
    assert len(index) == 2000
    assert index[-1].key == "01999"
    assert len(calls) < 1000


@given(
    st.lists(
        st.tuples(
            st.text("abc/", min_size=1, max_size=8),
            st.sampled_from(["json", "png", "before.jpg"]),
            st.binary(max_size=1200),
        ),
        max_size=12,
    )
)
@settings(max_examples=40, deadline=None)
def test_the_index_agrees_with_tarfile(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.tar"
    named = {f"k{key.strip('/').replace('//', '/').replace('//', '/')}.{suffix}": data for key, suffix, data in files}
    tar_of(path, named)
    got = {f"{key}.{suffix}": data for key, parts in everything(path) for suffix, data in parts.items()}
    assert got == named

"""Everybody's formats: other tools' tars, `datasets` folders, and tables in the dialects that programs write."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from raw_data import PAIR, encoded, numbered_images, put, table
from test_readers import convert, records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_images(tmp_path)


def tar(path: Path, members: dict[str, Any]) -> Path:
    """A tar of these members; what is no text or bytes is written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, value in members.items():
            data = (
                value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
            )
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def captions(folder: Path) -> dict[str, list[str]]:
    return {id: sample["captions"] for id, sample in records(folder).items()}


def img2dataset(path: Path, start: int, count: int) -> Path:
    """As img2dataset writes it: <key>.jpg, .json and .txt, beside the tar a table and statistics."""
    members: dict[str, Any] = {}
    for number in range(start, start + count):
        key = f"{number:09d}"
        members[f"{key}.jpg"] = encoded(number, "JPEG")
        members[f"{key}.json"] = {
            "caption": f"photo {number}",
            "url": "https://x.org/1",
            "key": key,
            "status": "success",
        }
        members[f"{key}.txt"] = f"photo {number}"
    put(path.with_name(f"{path.stem}_stats.json"), {"count": count})
    put(path.with_suffix(".parquet"), b"PAR1")
    return tar(path, members)


def test_tars_of_img2dataset(tmp_path: Path, capsys) -> None:
    for number in range(2):
        img2dataset(tmp_path / f"laion/{number:05d}.tar", 10 * number, 3)
    code, _, error = convert(capsys, "webdataset", tmp_path / "out", "--annotations", tmp_path / "laion")
    assert code == 0, error
    assert captions(tmp_path / "out/train")["000000011"] == ["photo 11"]
    assert (
        len(captions(tmp_path / "out/train")) == 6 and records(tmp_path / "out/train")["000000000"]["task"] == "single"
    )


def two(form: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """The members of two samples."""
    return {**form(1), **form(2)}


def test_a_column_that_only_the_last_tar_has_counts(tmp_path: Path, capsys) -> None:
    first = {"0.jpg": encoded(0, "JPEG"), "0.json": {"caption": "a"}, "1.jpg": encoded(1, "JPEG"), "1.png": encoded(1)}
    last = {"2.jpg": encoded(2, "JPEG"), "2.json": {"caption": "b", "caption_2": "c", "split": "test", "id": 0}}
    tar(tmp_path / "wds/0.tar", first)
    tar(tmp_path / "wds/1.tar", last)
    code, said, error = convert(capsys, "webdataset", tmp_path / "out", "--annotations", tmp_path / "wds")
    assert code == 0, error
    assert captions(tmp_path / "out/train") == {"0/0": ["a"]}
    assert captions(tmp_path / "out/test") == {"0": ["b", "c"]}
    assert "incomplete: 0.tar 1: 0.tar 1.png: a second image for 'image'" in said + error


WDS = {
    "two suffixes": (
        two(
            lambda n: {
                f"s/{n}.0.jpg": encoded(n, "JPEG"),
                f"s/{n}.1.png": encoded(n + 5),
                f"s/{n}.txt": f"c{n}",
                f"s/{n}.cls": "3",
            }
        ),
        "before=0.jpg,after=1.jpg",
    ),
    "two keys": (
        two(
            lambda n: {
                f"{n}_a.jpg": encoded(n, "JPEG"),
                f"{n}_b.jpg": encoded(n + 5, "JPEG"),
                f"{n}.json": {"edit": {"x": 1}, "says": f"c{n}"},
            }
        ),
        "before=_a,after=_b,caption=says",
    ),
    "keys with dots": (
        two(
            lambda n: {
                f"a.v{n}.before.jpg": encoded(n, "JPEG"),
                f"a.v{n}.after.jpg": encoded(n + 5, "JPEG"),
                f"a.v{n}.txt": f"c{n}",
                f"a.v{n}.npy": b"x",
            }
        ),
        "",
    ),
}


@pytest.mark.parametrize("form", WDS)
def test_pairs_in_one_tar(tmp_path: Path, form: str, capsys) -> None:
    members, columns = WDS[form]
    tar(tmp_path / "wds/val-000.tar", members)
    words = ("--annotations", tmp_path / "wds/val-000.tar", *(("--columns", columns) if columns else ()))
    code, _, error = convert(capsys, "webdataset", tmp_path / "out", *words)
    assert code == 0, error
    found = records(tmp_path / "out/val")
    assert sorted(sample["captions"] for sample in found.values()) == [["c1"], ["c2"]]
    assert all(sample["task"] == "pair" for sample in found.values())


def test_tars_side_by_side_and_samples_that_cannot_be_read(tmp_path: Path, capsys) -> None:
    for number in range(2):
        tar(tmp_path / f"old/{number}.tar", {f"k{n}.png": encoded(n + 7 * number) for n in range(3)})
        halves = {f"k{n}.png": encoded(n + 50 + number) for n in range(3)}
        tar(tmp_path / f"new/{number}.tar", {**halves, "k0.txt": "zero", "k1.txt": b"\xff\xfe\xfa", "k2.json": "[1"})
    words = ("--annotations", tmp_path, "--columns", "before=old/*.tar,after=new/*.tar")
    code, said, error = convert(capsys, "webdataset", tmp_path / "out", *words)
    assert code == 0, error
    assert captions(tmp_path / "out/train") == {"old/0/k0": ["zero"], "old/1/k0": ["zero"]}
    assert "skipped: incomplete 4" in said
    put(tmp_path / "packed/0.tar.gz", b"\x1f\x8b")
    code, _, error = convert(capsys, "webdataset", tmp_path / "two", "--annotations", tmp_path / "packed")
    assert code == 2 and "a compressed tar has no random access; unpack it first: gunzip" in error


def pairs_table(numbers: range) -> pyarrow.Table:
    """As `datasets` stores pairs: each image a struct of its bytes and its name."""
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    before = pyarrow.array([{"bytes": encoded(n), "path": f"{n}.png"} for n in numbers], struct)
    after = pyarrow.array([{"bytes": encoded(n, "JPEG"), "path": None} for n in numbers], struct)
    said = pyarrow.array([[f"brighter {n}", f"lighter {n}"] for n in numbers])
    return pyarrow.table({"source_img": before, "target_img": after, "captions": said, "img_id": list(numbers)})


def saved_to_disk(folder: Path, rows: pyarrow.Table) -> None:
    folder.mkdir(parents=True)
    half = len(rows) // 2
    names = [f"data-{n:05d}-of-00002.arrow" for n in range(2)]
    for name, part in zip(names, (rows.slice(0, half), rows.slice(half)), strict=True):
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(part)
    put(folder / "state.json", {"_data_files": [{"filename": name} for name in names], "_split": folder.name})
    put(folder / "dataset_info.json", {"features": {}})


def test_a_folder_that_save_to_disk_wrote(tmp_path: Path, capsys) -> None:
    for split, numbers in (("train", range(5)), ("validation", range(10, 13))):
        saved_to_disk(tmp_path / "saved" / split, pairs_table(numbers))
    put(tmp_path / "saved/dataset_dict.json", {"splits": ["train", "validation"]})
    code, _, error = convert(capsys, "hf", tmp_path / "out", tmp_path / "saved", "--columns", "id=img_id")
    assert code == 0, error
    assert captions(tmp_path / "out/train") == {str(n): [f"brighter {n}", f"lighter {n}"] for n in range(5)}
    assert set(captions(tmp_path / "out/val")) == {"10", "11", "12"}
    code, _, error = convert(capsys, "hf", tmp_path / "one", tmp_path / "saved/train", "--columns", "id=img_id")
    assert code == 0 and len(captions(tmp_path / "one/train")) == 5, error


def test_labels_of_datasets_are_kept_by_name_and_chat_messages_are_conversations(tmp_path: Path, capsys) -> None:
    rows = pairs_table(range(3)).append_column("change_type", pyarrow.array([1, -1, 0]))
    labels = {"change_type": {"names": ["add", "remove"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": labels}})}
    saved_to_disk(tmp_path / "saved", rows.replace_schema_metadata(about))
    code, _, error = convert(capsys, "hf", tmp_path / "out", tmp_path / "saved", "--columns", "id=img_id")
    assert code == 0, error
    types = {id: record["meta"].get("change_type") for id, record in records(tmp_path / "out/train").items()}
    assert types == {"0": "remove", "1": None, "2": "add"}
    asked = [{"type": "image", "text": None}, {"type": "text", "text": "What is gone?"}]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": "the hat"}]},
    ]
    put(tmp_path / "0.png", encoded(0))
    path = put(tmp_path / "chat.json", [{"id": "a", "image": "0.png", "messages": messages}])
    code, _, error = convert(capsys, "generic", tmp_path / "chat", "--table", path)
    assert code == 0, error
    said = [{"from": "human", "value": "<image>\nWhat is gone?"}, {"from": "gpt", "value": "the hat"}]
    assert records(tmp_path / "chat/train")["a"]["conversations"] == said


def test_parquet_in_many_files_as_the_hub_has_it(tmp_path: Path, capsys) -> None:
    for number, (split, numbers) in enumerate((("train", range(2)), ("train", range(2, 4)), ("test", range(4, 6)))):
        path = put(tmp_path / f"hub/data/{split}-{number:05d}-of-00003.parquet", b"")
        pyarrow.parquet.write_table(pairs_table(numbers), path)
    put(tmp_path / "hub/README.md", "# a data set")
    code, _, error = convert(
        capsys, "hf", tmp_path / "out", tmp_path / "hub", "--split", "train", "--columns", "id=img_id"
    )
    assert code == 0, error
    assert set(captions(tmp_path / "out/train")) == set("0123") and not (tmp_path / "out/test").exists()
    pattern = tmp_path / "hub/data/t*-0000[12]-*.parquet"
    code, _, error = convert(capsys, "hf", tmp_path / "some", pattern, "--columns", "id=img_id")
    assert code == 0, error
    assert (set(captions(tmp_path / "some/train")), set(captions(tmp_path / "some/test"))) == ({"2", "3"}, {"4", "5"})


def test_an_imagefolder_and_lists_of_images(tmp_path: Path, capsys) -> None:
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        for n in numbers:
            put(tmp_path / f"if/{split}/{n}.png", encoded(n))
        lines = "\n".join(json.dumps({"file_name": f"{n}.png", "text": f"photo {n}"}) for n in numbers)
        put(tmp_path / f"if/{split}/metadata.jsonl", lines)
    code, _, error = convert(capsys, "hf", tmp_path / "out", tmp_path / "if")
    assert code == 0, error
    assert captions(tmp_path / "out/train") == {"train-0": ["photo 0"], "train-1": ["photo 1"]}
    assert captions(tmp_path / "out/test") == {"test-2": ["photo 2"]}
    turns = [{"from": "human", "value": "<image><image>What differs?"}, {"from": "gpt", "value": "the hat"}]
    rows = [
        {"id": "two", "images": ["train/0.png", "train/1.png"], "conversations": turns},
        {"id": "one", "images": ["test/2.png"], "conversations": turns},
        {"id": "three", "images": ["test/2.png"] * 3, "conversations": turns},
    ]
    path = put(tmp_path / "if/llava.json", rows)
    code, said, error = convert(capsys, "generic", tmp_path / "two", "--table", path)
    assert code == 0, error
    found = records(tmp_path / "two/train")
    assert found["two"]["members"] == {"before.png", "after.png", "json"} and found["two"]["conversations"] == turns
    assert (
        found["one"]["members"] == {"png", "json"}
        and "incomplete: llava.json row 3: 3 images, but a row may have" in said
    )


def test_a_data_set_that_is_neither_here_nor_on_the_hub_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, error = convert(capsys, "hf", tmp_path / "out", "owner/pairs-that-are-not")
    assert (code, error.count("\n")) == (2, 1)
    assert "owner/pairs-that-are-not: neither a folder here nor a data set of the hub that can be fetched" in error


DIALECTS: dict[str, tuple[str, bytes]] = {
    "semicolons": ("t.csv", b"before;after;caption\n0.png;1.png;it moved, slowly\n"),
    "tabs in .csv": ("t.csv", b"before\tafter\tcaption\n0.png\t1.png\tit moved, slowly\n"),
    "bars": ("t.csv", b"before|after|caption\n0.png|1.png|it moved, slowly\n"),
    "UTF-16": ("t.csv", 'before,after,caption\r\n0.png,1.png,"it moved, slowly"\r\n'.encode("utf-16")),
    "UTF-16 JSON": ("t.json", json.dumps([{**PAIR, "caption": "it moved, slowly"}]).encode("utf-16")),
    "rows under a key": (
        "t.json",
        json.dumps({"info": {}, "data": [{**PAIR, "caption": "it moved, slowly"}]}).encode(),
    ),
    "an object of rows": ("t.json", json.dumps({"7": {**PAIR, "caption": "it moved, slowly"}}).encode()),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_of_tables(folder: Path, dialect: str, capsys) -> None:
    name, data = DIALECTS[dialect]
    code, _, error = convert(capsys, "generic", folder / "out", "--table", put(folder / name, data))
    assert code == 0, error
    assert list(captions(folder / "out/train").values()) == [["it moved, slowly"]]


def test_what_needs_a_word_of_the_user_says_which(folder: Path, capsys) -> None:
    rows = [{**PAIR, "caption": "it moved"}]
    path = put(folder / "t.json", {"train": rows, "extra": [{**PAIR, "caption": "other"}]})
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 2 and "arrays of rows under train, extra; choose one, as in --columns rows=train" in error
    assert convert(capsys, "generic", folder / "out", "--table", path, "--columns", "rows=train")[0] == 0
    code, _, error = convert(capsys, "generic", folder / "out", "--table", put(folder / "t.xlsx", b"PK"))
    assert (
        code == 2 and "spreadsheets are not supported; save the sheet as 'CSV UTF-8', or: pip install pandas" in error
    )
    long = "word " * 40_000
    code, _, error = convert(
        capsys, "generic", folder / "long", "--table", table(folder / "t.csv", [{**PAIR, "caption": long}])
    )
    assert code == 0, error
    assert captions(folder / "long/train")["0-1"] == [long.strip()]

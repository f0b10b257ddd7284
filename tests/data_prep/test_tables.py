"""Tables as people have them: nothing that stands in one is lost, and nothing that is no caption becomes one."""

import json
import random
import re
from pathlib import Path

import pytest
from raw_data import numbered_images, put, table
from test_readers import convert, records

from data_prep.readers.files import json_lines
from data_prep.readers.tables import columns_of, table_batches, table_rows
from onediff.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_images(tmp_path)


def written(folder: Path, kind: str, rows: list[dict[str, object]]) -> Path:
    """`rows` as a table of that kind; in JSON each row keeps its own keys."""
    path = folder / f"t.{kind}"
    if kind == "jsonl":
        return put(path, "\n".join(map(json.dumps, rows)))
    if kind == "json":
        return put(path, rows)
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for row in rows for name in row)
    pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_a_column_that_only_some_rows_have_counts_in_those(folder: Path, kind: str, capsys) -> None:
    rows = [
        {"before": "0.png", "after": "1.png", "caption": "one"},
        {"before": "2.png", "after": "3.png", "caption": "two", "split": "test", "id": 0, "caption_2": "zwei"},
        {"before": "4.png", "after": "5.png", "caption_2": "drei", "change_type": 0},
    ]
    path = written(folder, kind, rows)
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 0, error
    train, test = records(folder / "out/train"), records(folder / "out/test")
    assert test["0"]["captions"] == ["two", "zwei"]
    assert train["4-5"]["captions"] == ["drei"]
    assert train["4-5"]["meta"]["change_type"] == "0"
    assert len(train) == 2 and len(test) == 1


def test_columns_of_one_name_and_keys_that_stand_twice_are_refused(folder: Path, capsys) -> None:
    put(folder / "t.csv", "before,after,caption,Caption\n0.png,1.png,a,b\n")
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "t.csv")
    assert code == 2 and "t.csv: two columns are called 'caption'; rename one" in error
    put(folder / "t.jsonl", '{"before": "0.png", "after": "1.png", "caption": "a", "caption": "b"}')
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "t.jsonl")
    assert code == 2 and "line 1: not JSON: the key 'caption' is repeated in one object" in error
    put(
        folder / "t.jsonl",
        '{"before": "0.png", "after": "1.png", "caption": "a", "Split": "test"}\n'
        '{"before": "2.png", "after": "3.png", "caption": "b", "split": "train"}',
    )
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "t.jsonl")
    assert code == 2 and "columns 'Split' and 'split': rename one, or choose one" in error
    put(folder / "t.csv", "before,after,caption,split\n0.png,1.png,a,True\n")
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "t.csv")
    assert code == 2 and "t.csv row 1: split 'true' is not the name of a split; write train, val or test" in error


def test_pairs_of_the_same_names_in_different_folders_are_different_pairs(folder: Path, capsys) -> None:
    for scene in range(3):
        for name, number in (("before", 2 * scene), ("after", 2 * scene + 1)):
            (folder / f"scene{scene}").mkdir(exist_ok=True)
            (folder / f"scene{scene}" / f"{name}.png").write_bytes((folder / f"{number}.png").read_bytes())
    rows = [
        {"before": f"scene{n}/before.png", "after": f"scene{n}/after.png", "caption": f"change {n}"} for n in range(3)
    ]
    rows += [
        {"before": "0.png", "after": "0.jpg", "caption": "a"},
        {"before": "0.jpg", "after": "0.png", "caption": "b"},
    ]
    code, _, error = convert(capsys, "generic", folder / "out", "--table", table(folder / "t.csv", rows))
    assert code == 0, error
    found = records(folder / "out/train")
    assert {id: sample["captions"] for id, sample in found.items()} == {
        **{f"scene{n}-before-after": [f"change {n}"] for n in range(3)},
        "0-0": ["a"],
        "0.jpg-0.png": ["b"],
    }


def test_an_id_of_the_users_that_stands_for_two_pairs_is_refused_with_a_way_out(folder: Path, capsys) -> None:
    rows = [{"id": "x", "before": f"{n}.png", "after": f"{n + 1}.png", "caption": "c"} for n in (0, 2)]
    path = table(folder / "t.csv", rows)
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 2
    assert "t.csv row 2: an earlier row of split train has the id 'x' and other images" in error
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--columns", "id=")
    assert code == 0, error
    assert set(records(folder / "out/train")) == {"0-1", "2-3"}


def test_a_column_named_as_the_caption_is_not_the_instruction_too(folder: Path, capsys) -> None:
    """MagicBrush and AURORA publish the edit, which becomes the caption, under `instruction`."""
    rows = [{"source_img": "0.png", "target_img": "1.png", "instruction": "add a hat"}]
    path = table(folder / "t.csv", rows)
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path, "--columns", "caption=instruction")
    assert code == 0, error
    sample = records(folder / "out/train")["0-1"]
    assert sample["captions"] == ["add a hat"] and "instruction" not in sample
    words = ("--columns", "caption=instruction,instruction=instruction")
    code, _, error = convert(capsys, "generic", folder / "two", "--table", path, *words)
    assert code == 2 and "--columns: instruction is named for two meanings; a column can have only one" in error
    rows = [{"before": "0.png", "after": "1.png", "caption": "add a hat", "instruction": "add a hat"}]
    code, said, error = convert(capsys, "generic", folder / "same", "--table", table(folder / "t.csv", rows))
    assert code == 0 and "noted: instruction_is_caption 1" in said


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("nan", None),
        ("None", None),
        ("null", None),
        ("['left', 'gone']", ["left", "gone"]),
        ('["left", null]', ["left"]),
        ("['it left' \"it's back\"\n 'gone']", ["it left", "it's back", "gone"]),
        ("[]", None),
        ("\u200b", None),
        ("[sic] it left", ["[sic] it left"]),
        ("none of it changed", ["none of it changed"]),
    ],
)
def test_what_programs_write_for_nothing_or_for_a_list_is_read_as_that(
    folder: Path, cell: str, captions, capsys
) -> None:
    rows = [
        {"before": "0.png", "after": "1.png", "caption": cell},
        {"before": "2.png", "after": "3.png", "caption": "x"},
    ]
    code, said, error = convert(capsys, "generic", folder / "out", "--table", table(folder / "t.csv", rows))
    assert code == 0, error
    found = records(folder / "out/train")
    assert found["2-3"]["captions"] == ["x"]
    assert (found["0-1"]["captions"] if captions else "no_caption" in said) == (captions or True)


def test_not_a_number_neither_becomes_a_caption_nor_breaks_the_record(folder: Path, capsys) -> None:
    put(
        folder / "t.jsonl",
        '{"before": "0.png", "after": "1.png", "caption": NaN, "caption_2": "it left", "score": NaN, "rank": 3}',
    )
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "t.jsonl")
    assert code == 0, error
    sample = records(folder / "out/train")["0-1"]
    assert sample["captions"] == ["it left"] and sample["meta"]["rank"] == 3 and "score" not in sample["meta"]


def test_every_other_column_is_kept(folder: Path, capsys) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = {
        "before": ["0.png"],
        "after": ["1.png"],
        "caption": ["it left"],
        "notes": ["taken at night"],
        "size": ["large"],
        "day": pyarrow.array([1], pyarrow.date32()),
        "boxes": [[[1.5, 2.0], [float("nan")]]],
        "camera": [{"lens": "wide", "raw": b"x"}],
        "empty": [""],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "t.parquet")
    code, said, error = convert(capsys, "generic", folder / "out", "--table", folder / "t.parquet")
    assert code == 0 and "noted" not in said, error
    meta = records(folder / "out/train")["0-1"]["meta"]
    assert meta.pop("size").keys() == {"before", "after"}
    assert meta == {
        **{"table_notes": "taken at night", "table_size": "large", "day": "1970-01-02"},
        **{"boxes": [[1.5, 2.0], [None]], "camera": {"lens": "wide", "raw": None}},
    }


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_column_names_that_are_no_text_are_one_line(folder: Path, kind: str, capsys) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.table({"before": ["0.png"], "after": ["1.png"], "caption": ["it left"]})
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(rows, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows)
    path.write_bytes(path.read_bytes().replace(b"caption", b"capti\xb3n"))
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 2 and error.startswith(f"onediff: error: {path}: not a") and error.count("\n") == 1


def test_a_table_of_conversations_alone_has_no_images(folder: Path, capsys) -> None:
    said = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "two"}]
    path = put(folder / "t.jsonl", json.dumps({"id": "a", "messages": said}))
    code, _, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 0, error
    sample = records(folder / "out/train")["a"]
    assert sample["task"] == "conversation" and sample["conversations"][1] == {"from": "gpt", "value": "two"}


def test_rows_merged_into_one_that_cannot_be_used_are_counted(folder: Path, capsys) -> None:
    pair = {"before": "0.png", "after": "1.png", "caption": ""}
    path = put(
        folder / "t.jsonl", "\n".join(map(json.dumps, [pair, pair, {**pair, "before": "2.png", "caption": "x"}]))
    )
    code, said, error = convert(capsys, "generic", folder / "out", "--table", path)
    assert code == 0, error
    assert "skipped: no_caption 1" in said and "noted: merged_row 1" in said


def test_an_object_for_a_caption_and_text_that_is_no_utf8_are_one_line_each(folder: Path, capsys) -> None:
    put(folder / "t.jsonl", json.dumps({"before": "0.png", "after": "1.png", "caption": {"en": "gone", "de": "weg"}}))
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "t.jsonl")
    assert code == 2 and "t.jsonl row 1: the caption is an object with the fields 'en', 'de'" in error
    (folder / "l.json").write_bytes('[{"before": "0.png", "after": "1.png", "caption": "grün"}]'.encode("latin-1"))
    code, _, error = convert(capsys, "generic", folder / "out", "--table", folder / "l.json")
    assert code == 2 and "l.json line 1: not text in UTF-8" in error and error.count("\n") == 1


def test_lines_of_json_read_by_column_are_those_read_one_at_a_time(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.readers.lines.PIECE", 60)
    draw, by_column = random.Random(0), 0
    values = ["x", "é", "2020-01-01", "a\\n\u2028", "", 3, -0, 2**70, 1.5, True, None, ["a", None], [], {"k": 1}]
    for _ in range(400):
        kept = draw.choices(values, k=draw.choice((1, 2, 4)))
        rows = [{name: draw.choice(kept) for name in draw.sample("abc", draw.choice((2, 3, 3)))} for _ in range(5)]
        text = "\n".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows)
        if draw.random() < 0.5:
            at = draw.randrange(len(text))
            text = (
                text[:at]
                + draw.choice(("", "\n", "\r", "\t", '"', "}{", "\\", "\ufeff", '{"a": NaN}\n'))
                + text[at + 1 :]
            )
        path = put(folder / "t.jsonl", text)
        try:
            expected = list(json_lines(path))
        except UserError as error:
            with pytest.raises(UserError, match=re.escape(str(error))):
                list(table_rows(path))
            with pytest.raises(UserError):
                columns_of(path)
            continue
        assert [row for _, row in table_rows(path)] == expected, text
        assert columns_of(path) == list(dict.fromkeys(name for row in expected for name in row)), text
        number = 0
        for batch in table_batches(path):
            assert batch.first == number + 1
            number += len(batch.cells)
            if batch.columns is not None:
                by_column += 1
                found = batch.columns.to_pylist()
                known = expected[batch.first - 1 : number]
                assert found == [{name: row.get(name) for name in found[0]} for row in known], text
    assert by_column > 100

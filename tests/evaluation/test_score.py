"""`onediff score`: published numbers from published files, and one clear line for each malformed input."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from onediff.cli import main
from onediff.evaluation.files import read_predictions, read_references

Run = Callable[..., tuple[int, str, str]]

REFERENCES = [
    {"id": "1", "captions": ["the car is gone", "a red car has left"], "change_type": "remove"},
    {"id": "2", "captions": ["a dog has appeared"], "change_type": "add"},
    {"id": "3", "captions": ["nothing has changed"], "change_type": "none"},
]
PREDICTIONS = [
    {"id": "1", "caption": "the red car is gone"},
    {"id": "2", "caption": "a cat has appeared"},
    {"id": "3", "caption": "nothing has changed"},
]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `onediff score` here and without Java, whose start takes seconds; gives exit code, output and errors."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)

    def score(references: Path, predictions: Path, *words: str) -> tuple[int, str, str]:
        code = main(["score", "--references", str(references), "--predictions", str(predictions), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return score


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def references(tmp_path: Path) -> Path:
    return lines(tmp_path / "references.jsonl", REFERENCES)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return lines(tmp_path / "predictions.jsonl", PREDICTIONS)


def test_published_scores_from_shuffled_files_with_repeated_images_and_mixed_ids(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = real_data / "spot-the-diff" / "predictions"
    theirs = json.loads((folder / "ddla_rerun_gtfile.json").read_text())
    ours = json.loads((folder / "ddla_rerun_predfile.json").read_text())
    for entries in (theirs["annotations"], theirs["images"], ours):
        random.Random(0).shuffle(entries)
    theirs["images"] *= 2
    for entry in ours[::2]:
        entry["image_id"] = int(entry["image_id"])
    for entry in theirs["annotations"][::3]:
        entry["image_id"] = int(entry["image_id"])
    references, predictions = tmp_path / "gt.json", tmp_path / "pred.json"
    references.write_text(json.dumps(theirs))
    predictions.write_text(json.dumps(ours))
    plain = read_references(folder / "ddla_rerun_gtfile.json").captions
    assert {p: sorted(c) for p, c in read_references(references).captions.items()} == {
        p: sorted(c) for p, c in plain.items()
    }
    assert read_predictions(predictions) == read_predictions(folder / "ddla_rerun_predfile.json")

    words = ["--protocol", "spot-the-diff", "--bootstrap", "200", "--out", str(tmp_path / "scores.json")]
    assert main(["score", "--references", str(references), "--predictions", str(predictions), *words]) == 0
    published = json.loads((folder / "published_scores.json").read_text())
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["pairs"] == 1270
    for metric, value in published.items():
        assert round(found["scores"][metric.replace("_", "-")], 3) == value, metric
        low, high = found["intervals"][metric.replace("_", "-")]
        assert low < value < high
    assert found["tokenisation"] == "ptb"
    assert not found["notes"]
    out = capsys.readouterr().out
    assert "1270 pairs" in out
    assert "DDLA" in out


@pytest.mark.parametrize("kind", ["coco", "csv", "tsv", "windows", "mark"])
def test_every_kind_of_file_gives_the_same(run: Run, references: Path, tmp_path: Path, kind: str) -> None:
    flat = [(r["id"], c, r["change_type"]) for r in REFERENCES for c in r["captions"]]
    given, made = tmp_path / "gt.json", tmp_path / "p.json"
    if kind == "coco":
        notes = [{"image_id": int(i), "id": n, "caption": c, "change_type": t} for n, (i, c, t) in enumerate(flat)]
        given.write_text(json.dumps({"images": [{"id": "1"}] * 3, "annotations": notes}))
        made.write_text(json.dumps([{"image_id": int(row["id"]), "caption": row["caption"]} for row in PREDICTIONS]))
    elif kind in ("csv", "tsv"):
        given, made = tmp_path / f"gt.{kind}", tmp_path / f"p.{kind}"
        comma = "," if kind == "csv" else "\t"
        given.write_text("\n".join(comma.join(row) for row in [("id", "caption", "change_type"), *flat]))
        made.write_text("\n".join([f"image_id{comma}text", *(f"{r['id']}{comma}{r['caption']}" for r in PREDICTIONS)]))
    else:
        given, made = tmp_path / "gt.jsonl", tmp_path / "p.jsonl"
        text = ["\r\n".join(json.dumps(row) for row in rows) + "\r\n" for rows in (REFERENCES, PREDICTIONS)]
        mark = b"\xef\xbb\xbf" if kind == "mark" else b""
        given.write_bytes(mark + text[0].encode())
        made.write_bytes(mark + text[1].encode())
    code, _, errors = run(given, made, "--protocol", "demo", "--out", str(tmp_path / "one.json"))
    assert (code, errors) == (0, "")
    usual = lines(tmp_path / "usual.jsonl", PREDICTIONS)
    assert run(references, usual, "--protocol", "demo", "--out", str(tmp_path / "two.json"))[0] == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two
    assert one["scores"]["change type"] == 1
    assert one["change_types"]["add"]["pairs"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "9", "caption": "a car"}\n', "p.jsonl: id '9' not among the references in "),
        ('{"id": "1", "caption": "a car"}\n', "p.jsonl: no caption for id '2' (and 1 more); --allow-missing"),
        ('{"id": "1", "caption": "  "}\n', "p.jsonl: line 1: empty caption for id '1'; --allow-missing"),
        ('{"id": 1, "caption": "a"}\n\n{"id": "1", "caption": "b"}\n', "line 3: a second prediction for id '1'"),
        ('{"id": "1", "caption": NaN}\n', "p.jsonl: line 1: NaN is not JSON"),
        ('{"id": "1", "caption": null}\n', "line 1: the caption of id '1' is not text"),
        ('{"id": "1", "caption": "\\ud800"}\n', "line 1: the caption of id '1' contains half a character"),
        ('{"id": null, "caption": "a"}\n', "line 1: the id is None"),
        ('{"id": 1.5, "caption": "a"}\n', "line 1: the id is 1.5"),
        ('{"id": "1"}\n', "line 1: no 'caption' or 'captions' or 'text' or 'prediction' in it"),
        ('{"id": "1", "captions": ["a", "b"]}\n', "line 1: 2 captions for id '1'; a prediction has exactly one"),
        ("[1]\n", "line 1: not an object with an id and a caption"),
        ('{"id": "1", \n', "line 1: not JSON at line 1"),
        ("", "p.jsonl: no predictions in it"),
    ],
)
def test_a_malformed_line_is_one_clear_line(run: Run, references: Path, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    code, out, errors = run(references, file)
    assert code == 2
    assert out == ""
    assert errors.startswith("onediff: error: ")
    assert errors.count("\n") == 1
    assert said in errors


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("p.jsonl", b'{"id": "1", "caption": "caf\xe9"}', "not UTF-8 at byte 27"),
        ("p.json", b'{"images": []}', 'no list "annotations", which'),
        ("p.json", b'"text"', "neither a list of captions nor COCO-style annotations"),
        ("p.json", b'[{"image_id": 1, "caption": Infinity}]', "Infinity is not JSON"),
        ("p.json", b"[" * 100_000, "p.json: not "),
        ("p.csv", b"name,caption\n1,a\n", "no column 'id' in the header, which has 'name', 'caption'"),
        ("p.csv", b"id,caption\n1,a car, gone\n", "line 2: more or fewer fields than the header"),
        ("p.csv", b'id,caption\n1,"a car\n', "p.csv: line 1: unexpected end of data"),
        ("p.txt", b"a car", "unknown kind of file"),
    ],
)
def test_a_malformed_file_is_one_clear_line(
    run: Run, references: Path, tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    code, _, errors = run(references, tmp_path / name)
    assert code == 2
    assert errors.count("\n") == 1
    assert said in errors


def test_absent_files_and_wrong_words(run: Run, references: Path, predictions: Path, tmp_path: Path) -> None:
    assert "No such file" in run(references, tmp_path / "absent.jsonl")[2]
    assert "(did you mean 'spot-the-diff'?)" in run(references, predictions, "--protocol", "spot-the-dif")[2]
    assert "--bootstrap" in run(references, predictions, "--bootstrap", "-1")[2]
    mixed = lines(tmp_path / "mixed.jsonl", [*REFERENCES, REFERENCES[0] | {"change_type": "add"}])
    assert "id '1' is 'add' here and 'remove' above" in run(mixed, predictions)[2]
    other = {"changes": [{"type": "add", "after": [3]}], "before": [], "after": []}
    unclear = lines(tmp_path / "unclear.jsonl", [REFERENCES[0] | {"meta": other}])
    assert "unclear.jsonl: line 1: changes, before and after do not fit" in run(unclear, predictions)[2]


def test_empty_references_follow_the_protocol(run: Run, predictions: Path, tmp_path: Path) -> None:
    blank = lines(tmp_path / "blank.jsonl", [*REFERENCES[:2], {"id": "3", "captions": [""]}])
    assert run(blank, predictions, "--protocol", "spot-the-diff")[0] == 0
    code, _, errors = run(blank, predictions, "--protocol", "image-editing-request")
    assert code == 2
    assert "blank.jsonl: an empty caption for id '3'" in errors
    code, out, _ = run(blank, predictions, "--protocol", "birds-to-words")
    assert code == 0
    assert "2 pairs" in out


def test_allow_missing_scores_what_is_there_and_says_so(run: Run, references: Path, tmp_path: Path) -> None:
    some = lines(tmp_path / "some.jsonl", [PREDICTIONS[0], {"id": "2", "caption": ""}])
    code, out, _ = run(references, some, "--allow-missing", "--out", str(tmp_path / "scores.json"))
    assert code == 0
    assert "note: 2 of 3 pairs have no caption and are left out: id '2' (and 1 more)" in out
    assert json.loads((tmp_path / "scores.json").read_text())["missing"] == ["2", "3"]


def test_against_another_file_and_against_earlier_scores(
    run: Run, references: Path, predictions: Path, tmp_path: Path
) -> None:
    other = lines(tmp_path / "other.jsonl", [row | {"caption": "a dog"} for row in PREDICTIONS])
    result = tmp_path / "scores.json"
    code, out, _ = run(references, predictions, "--against", str(other), "--out", str(result))
    assert code == 0
    assert "difference" in out
    found = json.loads(result.read_text())["against"]
    assert found["CIDEr"]["difference"] == pytest.approx(found["CIDEr"]["ours"] - found["CIDEr"]["other"])
    assert 0 < found["CIDEr"]["p"] <= 1
    run(references, predictions, "--against", str(other), "--out", str(result), "--bootstrap", "0")
    assert json.loads(result.read_text())["against"]["CIDEr"]["p"] is None
    code, out, _ = run(references, other, "--against", str(result))
    assert code == 0
    assert "earlier" in out
    code, _, errors = run(references, predictions, "--against", str(result), "--protocol", "demo")
    assert code == 2
    assert "its protocol is 'plain', but here it is 'demo': these scores cannot be compared" in errors


def test_help_names_the_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["score", "--help"])
    assert stop.value.code == 0
    assert "birds-to-words" in capsys.readouterr().out

"""data_prep.build: a collection from what is there, captions by a language model included."""

import json
from pathlib import Path

import pytest
import yaml
from raw_data import encoded, put
from test_captioning import Endpoint, endpoint  # noqa: F401, a fixture
from test_readers import records
from test_retrieve import small_vision_model

from onediff.cli import main


def collection(folder: Path, url: str) -> Path:
    put(folder / "std/train.json", [{"img_id": "1", "sentences": ["a car left"]}])
    for name in ("1.png", "1_2.png"):
        put(folder / "std" / name, encoded(len(name)))
    put(folder / "ip2p/01/prompt.json", {"input": "a cat", "edit": "make it a dog", "output": "a dog"})
    put(folder / "ip2p/01/metadata.jsonl", '{"seed": 5}\n{"seed": 6}\n')
    for number, name in enumerate(("5_0", "5_1", "6_0", "6_1")):
        put(folder / f"ip2p/01/{name}.jpg", encoded(number, "JPEG"))
    parts = {
        "spots": {
            "reader": "spot-the-diff",
            "annotations": str(folder / "std"),
            "images": str(folder / "std"),
            "weight": 2,
            "published": 13192,
        },
        "edits": {
            "reader": "instruct-pix2pix",
            "images": str(folder / "ip2p"),
            "captions": {"model": "m", "base_url": url},
        },
        "later": {"reader": "levir-cc", "annotations": str(folder / "none.json")},
    }
    return put(folder / "c.yaml", yaml.safe_dump({"out": str(folder / "out"), "parts": parts}, sort_keys=False))


def test_what_is_there_is_built_and_a_second_run_costs_nothing(
    tmp_path: Path,
    endpoint: Endpoint,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = collection(tmp_path, endpoint.url)
    words = ["data", "build", str(file), "--processes", "1"]
    assert main(words) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["spots", "2", "13,192", "1", "train", "1"] in lines
    assert ["edits", "1", "2", "train", "2"] in lines
    (later,) = (line for line in lines if line[:1] == ["later"])
    assert later[:6] == ["later", "1", "raw", "files", "missing:", f"{tmp_path / 'none.json'},"]
    assert later[6:8] == ["published", "at"] and later[8].startswith("https://")
    assert ["mix:", "{spots:", "2,", "edits:", "1}"] in lines
    assert {record["captions"][0] for record in records(tmp_path / "out/edits/train").values()} == {endpoint.answer}
    assert len(endpoint.times) == 1  # Both pairs of the edit ask the same.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/*")}
    assert main(words) == 1
    assert len(endpoint.times) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/*")} == before


def test_pairs_are_found_captioned_and_converted(
    tmp_path: Path,
    endpoint: Endpoint,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_vision_model(tmp_path / "model")
    for number in range(5):
        put(tmp_path / f"img/{number}.png", encoded(number))
    lines = ["image,caption", *(f"{number}.png,scene {number}" for number in range(5))]
    part = {
        "images": str(tmp_path / "img"),
        "retrieve": {
            "model": str(tmp_path / "model"),
            "captions": str(put(tmp_path / "said.csv", "\n".join(lines))),
            "low": -1,
            "high": 0.99999,
        },
        "captions": {"model": "m", "base_url": endpoint.url, "prompt": "pair"},
    }
    file = put(tmp_path / "c.yaml", yaml.safe_dump({"out": str(tmp_path / "out"), "parts": {"found": part}}))
    assert main(["data", "build", str(file), "--processes", "1"]) == 0, capsys.readouterr().err
    made = records(tmp_path / "out/found/train")
    assert made and {sample["captions"][0] for sample in made.values()} == {endpoint.answer}
    asked = len(endpoint.times)
    assert asked == len(made) and all("The first image shows: scene" in question for question in endpoint.answered)
    assert main(["data", "build", str(file), "--processes", "1"]) == 0
    assert len(endpoint.times) == asked
    del part["captions"]
    put(tmp_path / "c.yaml", yaml.safe_dump({"out": str(tmp_path / "out"), "parts": {"found": part}}))
    assert main(["data", "build", str(file)]) == 2
    assert "found pairs have no captions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("out: x\nparts: {a: {reader: b, imagess: c}}", "unknown key 'parts.a.imagess' (did you mean 'images'?)"),
        ("out: x\nparts: {}", "parts: dictionary should have at least 1 item"),
        ("out: !!python/object/apply:os.system ['true']\nparts: {}", "not readable as YAML: could not determine"),
    ],
)
def test_a_wrong_collection_is_one_clear_line(
    tmp_path: Path, text: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "build", str(put(tmp_path / "c.yaml", text))]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_the_collection_that_travels_with_the_package_is_well_formed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(__file__).parents[2] / "configs/diffcap.yaml"
    monkeypatch.chdir(tmp_path)
    assert main(["data", "build", str(file)]) == 1
    said = capsys.readouterr().out
    assert all(name in said for name in yaml.safe_load(file.read_text())["parts"])
    assert not list(tmp_path.iterdir())
    assert json.dumps(yaml.safe_load(file.read_text()))  # Plain values only.


def test_the_mix_of_the_paper_reads_what_the_collection_makes() -> None:
    configs = Path(__file__).parents[2] / "configs"
    collection, mix, run = (
        yaml.safe_load((configs / name).read_text())
        for name in ("diffcap.yaml", "data/diffcap_mix.yaml", "onediff_7b.yaml")
    )
    paths = {name: one["path"] if isinstance(one, dict) else one for name, one in mix["sets"].items()}
    assert paths == {name: f"{collection['out']}/{name}" for name in paths}
    assert mix["sets"].keys() == collection["parts"].keys()
    assert {name for phase in run["phases"].values() for name in phase["mix"]} == mix["sets"].keys()

"""From a trained run to scores and captions: any number of ranks, killed or not, answers every pair exactly once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import onediff as package
from onediff.data.heldout import HeldOut
from onediff.training.address import Address, found
from onediff.training.checkpoint import read_manifest
from tests.small_run import onediff, render, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    # Small batches, so that every rank has several, and not equally many.
    more = {"evaluation.batch_size": 5, "evaluation.bootstrap": 0, "phases.two.evaluate_every": 2}
    more["phases.two.best"] = "{metric: evaluation/CIDEr}"
    done = train(folder, data, 2, "--processes", "2", **more)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def scores(run: Path) -> dict[str, object]:
    done = onediff(["evaluate", str(run), "--floors", "--processes", "2", "--json", str(run / "scores.json")])
    assert done.returncode == 0, done.stderr
    assert "before twice" in done.stdout
    return json.loads((run / "scores.json").read_text())


def answers(folder: Path) -> dict[str, str]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return {record["id"]: record["caption"] for record in map(json.loads, lines)}


def test_every_pair_is_answered_and_scored_beside_the_floors(run, data, scores):
    heldout = HeldOut.open(data / "pairs" / "test")
    (folder,) = (run / "evaluation").iterdir()
    assert answers(folder).keys() == heldout.references.keys()
    assert scores["pairs"] == len(heldout.references)
    assert set(scores["floors"]) == {"best constant", "before twice", "shuffled"}
    # Shuffled captions share the wording of the right ones; a model of two steps knows nothing yet.
    assert scores["floors"]["shuffled"]["BLEU-1"] > scores["scores"]["BLEU-1"]
    assert (folder / "report.html").stat().st_size > 10_000


def test_the_loop_evaluated_the_same_weights_and_told_the_tracking(run, scores):
    (folder,) = (run / "evaluation").iterdir()
    lines = [json.loads(line) for file in folder.glob("captions.rank*.jsonl") for line in file.read_text().splitlines()]
    by = {line["by"]: {one["id"]: one["caption"] for one in lines if one["by"] == line["by"]} for line in lines}
    in_loop, afterwards = by.values()
    assert in_loop == afterwards == answers(folder)
    journal = [json.loads(line) for line in (run / "tracking" / "phase-two.jsonl").read_text().splitlines()]
    (told,) = [record for record in journal if "evaluation/CIDEr" in record.get("metrics", {})]
    assert told["step"] == 2
    assert told["metrics"]["evaluation/CIDEr"] == pytest.approx(scores["scores"]["CIDEr"])
    best = read_manifest(found(Address.of(f"{run}@two:best")).checkpoint).extra["measures"]["best"]
    assert (best["step"], best["value"], best["lower"]) == (2, told["metrics"]["evaluation/CIDEr"], False)


@pytest.mark.long
def test_one_rank_gives_the_same_captions_as_two(run, scores, tmp_path):
    (two,) = (run / "evaluation").iterdir()
    done = onediff(["evaluate", str(run), "bootstrap=0", "--out", str(tmp_path / "one")])
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path / "one") == answers(two)


def test_an_export_captions_like_the_run_and_needs_nothing_else(run, scores, tmp_path):
    saved = tmp_path / "saved"
    assert onediff(["export", str(run), str(saved)]).returncode == 0
    for name, colour in (("before", "red"), ("after", "blue")):
        Image.new("RGB", (90, 70), colour).save(tmp_path / f"{name}.png")
    pictures = [str(tmp_path / "before.png"), str(tmp_path / "after.png")]
    of_run = onediff(["caption", *pictures, "--model", str(run), "--max-new-tokens", "8"])
    of_export = onediff(["caption", *pictures, "--model", str(saved), "--max-new-tokens", "8"])
    assert of_run.returncode == of_export.returncode == 0, of_run.stderr + of_export.stderr
    assert of_run.stdout == of_export.stdout
    assert package.load(saved).caption(*pictures, max_new_tokens=8) == of_run.stdout.strip()


def test_a_corrupt_picture_is_one_line(run, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff and no more")
    done = onediff(["caption", str(bad), str(bad), "--model", str(run)])
    assert done.returncode == 2
    assert "bad.jpg" in done.stderr
    assert "Traceback" not in done.stderr

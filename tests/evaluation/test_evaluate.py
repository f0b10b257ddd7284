"""From a trained run to scores and captions: any number of ranks, killed or not, answers every pair exactly once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from small_run import onediff, render, train

import onediff as package
from onediff.cli import main as command
from onediff.config.compose import load_run, write_run
from onediff.data.heldout import HeldOut
from onediff.model.architecture import architecture
from onediff.model.saved import load_model
from onediff.runs.address import Address
from onediff.training.checkpoint import read_manifest
from onediff.training.found import found


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
    words = ["evaluate", str(run), "--baselines", "--processes", "2", "--report", str(run / "scores.json")]
    done = onediff(words, java=True)
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
    assert scores["tokenisation"] == "ptb" and scores["scores"]["METEOR"] is not None
    assert set(scores["baselines"]) == {"best constant", "before twice", "shuffled"}
    # Shuffled captions share the wording of the right ones; a model of two steps knows nothing yet.
    assert scores["baselines"]["shuffled"]["BLEU-1"] > scores["scores"]["BLEU-1"]
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
    assert told["metrics"]["evaluation/captions right"] == scores["scores"]["captions right"]
    assert next(iter(scores["scores"])) == "captions right", "what was said comes first"
    best = read_manifest(found(Address.of(f"{run}@two:best")).checkpoint).extra["measures"]["best"]
    assert (best["step"], best["value"], best["lower"]) == (2, told["metrics"]["evaluation/CIDEr"], False)


@pytest.mark.long
def test_one_rank_gives_the_same_captions_as_two(run, scores, tmp_path):
    (two,) = (run / "evaluation").iterdir()
    done = onediff(["evaluate", str(run), "bootstrap=0", "--out", str(tmp_path / "one")])
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path / "one") == answers(two)


def test_an_export_captions_like_the_run_and_needs_nothing_else(run, scores, tmp_path, capsys):
    saved = tmp_path / "saved"
    assert command(["export", str(run), str(saved)]) == 0
    for name, colour in (("before", "red"), ("after", "blue")):
        Image.new("RGB", (90, 70), colour).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / "before.png"), str(tmp_path / "after.png")]
    capsys.readouterr()
    assert command(["caption", *images, "--model", str(run), "--max-new-tokens", "8"]) == 0
    of_run = capsys.readouterr().out
    # A process of its own has nothing of the run in memory.
    of_export = onediff(["caption", *images, "--model", str(saved), "--max-new-tokens", "8"])
    assert of_export.returncode == 0, of_export.stderr
    assert of_run == of_export.stdout
    assert package.load(saved).caption(*images, max_new_tokens=8) == of_run.strip()


def types_in(folder: Path) -> set[str]:
    files = sorted(folder.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {folder.name, "vision", "language"}
    headers = [safe_open(file, "pt") for file in files]
    return {header.get_slice(key).get_dtype() for header in headers for key in header.keys()}  # noqa: SIM118


def test_an_export_has_the_type_that_is_asked_for_or_in_which_the_language_model_came(run, tmp_path, capsys):
    def exported(name: str, *words: str, of: Path = run) -> Path:
        assert command(["export", str(of), str(tmp_path / name), *words]) == 0
        return tmp_path / name

    whole = exported("whole")
    assert types_in(whole) == {"F32"}, "the small run computes in fp32, from random weights"
    half = exported("half", "--dtype", "bf16", "--shard-gb", "0.00002")
    assert capsys.readouterr().out.endswith(", bf16\n")
    assert types_in(half) == {"BF16"}
    for part in ("vision", "language"):
        files = sorted(file.name for file in (half / part).glob("*.safetensors"))
        index = json.loads((half / part / "model.safetensors.index.json").read_text())
        assert len(files) > 1 and sorted(set(index["weight_map"].values())) == files
    rounded = dict(load_model(half)[0].named_parameters())
    for name, parameter in load_model(whole)[0].named_parameters():
        assert rounded[name].equal(parameter.bfloat16()), name
    # The same run, as if it had begun from a model that came in bf16.
    config, came = load_run(run), tmp_path / "came"
    architecture(config.model.language, "model.language").save_pretrained(came)
    described = came / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"dtype": "bfloat16"}))
    language = config.model.language.model_copy(update={"name": str(came), "config": None})
    model = config.model.model_copy(update={"language": language})
    copy = shutil.copytree(run, tmp_path / "copy")
    write_run(config.model_copy(update={"model": model}), copy / "config.yaml")
    for words, expected in (((), {"BF16"}), (("--dtype", "as-trained"), {"F32"}), (("--dtype", "fp32"), {"F32"})):
        assert types_in(exported("again", "--overwrite", *words, of=copy)) == expected


def test_a_corrupt_image_is_one_line(run, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff and no more")
    done = onediff(["caption", str(bad), str(bad), "--model", str(run)])
    assert done.returncode == 2
    assert "bad.jpg" in done.stderr
    assert "Traceback" not in done.stderr

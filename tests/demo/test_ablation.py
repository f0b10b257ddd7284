"""The ablation's cells: the same numbers twice, equally many parameters, nothing made again that is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.learning import ablation
from benchmarks.learning.ablation_table import tables
from benchmarks.learning.deltas import DELTAS, PEERS, LevelDifference, built, size
from onediff.training.features import frozen_tower, write_features
from tests.support.small_run import config, overrides, render

EVERY = (*DELTAS, *PEERS)
SIZES = {"model": "models/demo", "model.vision.name": "null", "evaluation.limit": 4}


def test_a_cell_gives_the_same_numbers_twice_and_beside_others_and_is_kept(tmp_path, monkeypatch, capsys):
    data = render(tmp_path / "scenes", pairs=20, singles=20)
    monkeypatch.chdir(tmp_path)
    words = ["--warm-up", "1", "--steps", "2", "--coupled", "1", *overrides(data, 2, **SIZES)]

    def run(out: str, *deltas: str, processes: int = 1) -> dict[str, dict]:
        asked = ["--out", out, "--deltas", ",".join(deltas), "--processes", str(processes), *words]
        if processes == 1:
            monkeypatch.setattr(sys, "argv", ["ablation", *asked])
            ablation.main()
            told = capsys.readouterr().out
        else:
            command = [sys.executable, "-m", "benchmarks.learning.ablation", *asked]
            house = {**os.environ, "PYTHONPATH": str(Path(ablation.__file__).parents[2])}
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=house, check=False)
            assert done.returncode == 0, done.stderr
            told = done.stdout
        assert "| captions right |" in told
        records = [json.loads(file.read_text()) for file in (tmp_path / out).glob("*.json")]
        return {record["command"].partition("--only ")[2].split()[0]: record for record in records}

    first = run("first", *EVERY)
    assert sorted(first) == sorted(f"scenes-{delta}-{cst}-0" for delta in EVERY for cst in ("cst", "no_cst"))
    for name, again in run("second", "difference", "joint", "subtraction", processes=2).items():
        assert again["loss"] == first[name]["loss"] and again["held_out"] == first[name]["held_out"]
    assert run("first", *EVERY) == first, "cells that are there are kept"


def test_a_cell_trains_on_features_in_bfloat16(tmp_path, monkeypatch):
    data = render(tmp_path / "scenes", pairs=10, singles=10)
    kept = {
        f"data.sets.{name}": f"{{path: {data / name}, features: {data / 'kept' / name}}}"
        for name in ("pairs", "singles")
    }
    trained = {"phases.warm-up.train": "[projector, language]", "phases.two.train": "[delta, projector, language]"}
    settings = overrides(data, 2, **{**SIZES, "training.precision": "bf16", **kept, **trained})
    cell = ablation.Cell("scenes", "vdm", False, 0, 1, 2, 0, tuple(settings))
    for name in ("pairs", "singles"):
        write_features(cell.config(), name, *frozen_tower(cell.config(), torch.device("cpu")))
    monkeypatch.setattr(ablation, "WORK", tmp_path)
    ablation.make(cell, tmp_path)
    (record,) = (json.loads(file.read_text()) for file in tmp_path.glob("scenes-*.json"))
    assert 0 < record["loss"] < 10


@pytest.mark.parametrize("on", ablation.SOURCES)
def test_every_source_has_the_three_phases_and_scores_its_pairs(on):
    run = ablation.Cell(on, "vdm", True, 0, 1, 2, 1, ()).config()
    phases = {role: run.phases[name] for role, name in ablation.Phases.of(run)._asdict().items()}
    assert len(run.phases) == len(phases)
    assert not phases["warm_up"].couple and "delta" not in phases["warm_up"].train
    assert phases["coupled"].couple and phases["coupled"].train == ("delta", "projector")
    assert "delta" in phases["pairs"].train and not phases["pairs"].couple
    assert phases["coupled"].mix == phases["warm_up"].mix
    assert len(ablation.held_out(run)) == (2 if on == "both" else 1)


@pytest.mark.parametrize("delta", EVERY)
def test_a_cell_trains_as_many_parameters_as_the_paper_module_and_sees_both_images(delta, tmp_path):
    model_config = config(tmp_path, 1, **SIZES).model
    paper, model = built(model_config, "vdm", 0), built(model_config, delta, 0)
    trained, wanted = (size(one.delta) + size(one.projector) for one in (model, paper))
    assert abs(trained - wanted) < 0.001 * wanted

    levels = torch.randn(len(model_config.vision.levels), 4, model.vision.tokens, model.vision.width)

    def tokens(image: int | None) -> torch.Tensor:
        """Delta tokens of two pairs, where one of the four images is another one."""
        given = levels.clone()
        if image is not None:
            given[:, image] = given[:, image].flip(0)
        with torch.no_grad():
            return model.delta(list(given), 2)

    looks = delta not in ("none", "concatenation")
    for image in range(4):
        changed = (tokens(image) != tokens(None)).flatten(1).any(1).tolist()
        assert changed == [looks and pair == image // 2 for pair in range(2)]


def test_what_subtraction_takes_from_the_difference_is_nothing_for_two_equal_images():
    look = LevelDifference(8, 4)
    for weight in (look.output.weight[:, : 2 * 4], look.gate.weight, look.gate.bias):
        nn.init.zeros_(weight)  # only the difference of the images is left, with all gates equally open
    images = torch.randn(3, 5, 8)
    with torch.no_grad():
        assert torch.equal(look(images, images), look.output.bias.expand(3, 5, 4))
        assert not torch.allclose(look(images, images.flip(0)), look.output.bias)


def test_a_table_tells_the_worst_seed_and_its_intervals_hold_what_seeds_vary(tmp_path):
    def cell(on: str, delta: str, seed: int, right: str, steps: int = 800) -> None:
        told = {"on": on, "delta": delta, "cst": False, "seed": seed, "warm_up": 300, "steps": steps, "coupled": 0}
        told |= {"overrides": [], "data": {"scenes": "abc"}}
        scored = {"scores": {"captions right": right.count("1") / len(right)}, "right": right}
        record = {"settings": told, "held_out": {"scenes": scored}}
        (tmp_path / f"{len(list(tmp_path.iterdir()))}.json").write_text(json.dumps(record))

    for seed, right in enumerate(("1111", "0000")):
        cell("scenes", "vdm", seed, right)
        cell("scenes", "joint", seed, right)
        cell("both", "vdm", seed, "0000")
    cell("scenes", "vdm", 0, "1100", steps=1250)
    first, second = (part.splitlines() for part in tables(tmp_path).split("\n\n")[1::2])
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in (*first[2:], second[2])]
    of_seeds, worst = "50.0 (0.0 to 100.0)", "0.0 (seed 1) to 100.0 (seed 0)"
    assert rows == [
        [
            "both",
            "vdm",
            "none",
            "0, 1",
            "0.0 (0.0 to 0.0)",
            "0.0 (seed 0) to 0.0 (seed 1)",
            "",
            "-50.0 (-100.0 to +0.0)",
        ],
        ["scenes", "vdm", "none", "0, 1", of_seeds, worst, "", ""],
        ["scenes", "joint", "none", "0, 1", of_seeds, worst, "+0.0 (+0.0 to +0.0)", ""],
        ["scenes", "vdm", "none", "0", "50.0 (0.0 to 100.0)", "", ""],
    ]

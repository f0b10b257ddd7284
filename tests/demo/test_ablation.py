"""The ablation's cells: the same numbers twice, equally many parameters, nothing made again that is there."""

import json
import sys

import pytest
import torch

from benchmarks.learning import ablation
from benchmarks.learning.deltas import DELTAS, PEERS, built, size
from tests.support.small_run import config, overrides, render

EVERY = (*DELTAS, *PEERS)
SIZES = {"model": "models/demo", "model.vision.name": "null", "evaluation.limit": 4}


def test_a_cell_gives_the_same_numbers_twice_and_is_kept(tmp_path, monkeypatch, capsys):
    data = render(tmp_path / "scenes", pairs=20, singles=20)
    monkeypatch.chdir(tmp_path)
    words = ["--warm-up", "1", "--steps", "2", "--coupled", "1", *overrides(data, 2, **SIZES)]

    def run(out: str, *deltas: str) -> dict[str, dict]:
        monkeypatch.setattr(sys, "argv", ["ablation", "--out", out, "--deltas", ",".join(deltas), *words])
        ablation.main()
        assert "| captions right |" in capsys.readouterr().out
        return {file.stem: json.loads(file.read_text()) for file in (tmp_path / out).glob("*.json")}

    first = run("first", *EVERY)
    assert sorted(first) == sorted(f"{delta}-{cst}-0" for delta in EVERY for cst in ("cst", "no_cst"))
    for name, again in run("second", "difference", "joint", "subtraction").items():
        assert again["loss"] == first[name]["loss"] and again["scores"] == first[name]["scores"]
    assert run("first", *EVERY) == first, "cells that are there are kept"


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

"""The ablation's cells: the same numbers twice, equally many parameters, nothing made again that is there."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.support.small_run import overrides, render

ABLATION = Path(__file__).parents[2] / "benchmarks" / "learning" / "ablation.py"


@pytest.fixture
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", ABLATION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_cell_gives_the_same_numbers_twice_and_is_kept(ablation, tmp_path, monkeypatch, capsys):
    data = render(tmp_path / "scenes", pairs=20, singles=20)
    monkeypatch.chdir(tmp_path)
    sizes = {"model": "models/demo", "model.vision.name": "null", "evaluation.limit": 4}
    words = ["--warm-up", "1", "--steps", "2", "--coupled", "1", *overrides(data, 2, **sizes)]

    def run(out: str, *more: str) -> dict[str, dict]:
        monkeypatch.setattr(sys, "argv", ["ablation.py", "--out", out, *words, *more])
        ablation.main()
        assert "| captions right |" in capsys.readouterr().out
        return {file.stem: json.loads(file.read_text()) for file in (tmp_path / out).glob("*.json")}

    first, second = run("first"), run("second", "--only", "difference-cst-0")
    assert sorted(first) == [f"{d}-{c}-0" for d in ("difference", "none", "residual", "vdm") for c in ("cst", "no_cst")]
    (again,) = second.values()
    assert again["loss"] == first["difference-cst-0"]["loss"] and again["scores"] == first["difference-cst-0"]["scores"]
    sizes = [record["parameters"] for record in first.values()]
    assert max(sizes) - min(sizes) < 0.001 * max(sizes)
    assert run("first") == first, "cells that are there are kept"

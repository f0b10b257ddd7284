"""docs/extending.md as it stands: its files are written, its package is installed, and what it adds is used."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_prep.readers import Row
from onediff.cli import main
from onediff.config.compose import load_run
from onediff.config.plugins import COUPLING_RULES
from onediff.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCK = re.compile(r"^```(?:python|toml|yaml)\n# (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page, in which its package is importable and its entry points are known."""
    for name, text in BLOCK.findall(PAGE.read_text()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    project = (tmp_path / "pyproject.toml").read_text() + "\n"
    known = re.findall(r'^\[project\.entry-points\."(.+?)"\]\n(.*?)\n\n', project, re.DOTALL | re.MULTILINE)
    (tmp_path / "my_package-1.0.dist-info").mkdir()
    (tmp_path / "my_package-1.0.dist-info" / "METADATA").write_text("Name: my-package\nVersion: 1.0\n")
    points = "\n".join(f"[{group}]\n{lines}" for group, lines in known).replace('"', "")
    (tmp_path / "my_package-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)  # the package of another page's example
    importlib.invalidate_caches()
    return tmp_path


def test_the_reader_converts(here, capsys):
    (here / "photos").mkdir()
    for name in ("monday", "tuesday"):
        for role, seed in (("a", 20), ("b", 30)):
            Image.effect_noise((40, 30), seed + len(name)).save(here / "photos" / f"{name}_{role}.png")
        (here / "photos" / f"{name}.txt").write_text(f"the van has left\nno van on {name}\n")
    assert main(["data", "convert", "street", "--images", "photos", "--out", "data/street", "--processes", "1"]) == 0
    manifest = json.loads((here / "data" / "street" / "train" / "manifest.json").read_text())
    assert manifest["samples"] == 2 and manifest["licence"] == "CC BY 4.0"


def test_the_rule_orders_captions(here):
    assert "by_length" in COUPLING_RULES.points()
    assert list(COUPLING_RULES.load("by_length")(["three", "a", "to"])) == [1, 2, 0]


def test_the_metric_has_its_columns(here, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")  # without Java, whose start takes seconds
    monkeypatch.delenv("JAVA_HOME", raising=False)
    references = '{"id": "a", "captions": ["one two"]}\n{"id": "b", "captions": ["one"], "change_type": "add"}\n'
    (here / "references.jsonl").write_text(references)
    (here / "predictions.jsonl").write_text('{"id": "a", "caption": "one two two"}\n{"id": "b", "caption": "one"}\n')
    (command,) = re.findall(r"^ {4}onediff (score .*)$", PAGE.read_text(), re.MULTILINE)
    assert main([*command.split(), "--bootstrap", "0", "--out", "scores.json", "--report", "page.html"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"distinct words +75\.0", out) and re.search(r"change type ×100 .*distinct words", out)
    assert json.loads((here / "scores.json").read_text())["per_pair"]["a"]["distinct words"] == pytest.approx(2 / 3)
    assert '"distinct words"' in (here / "page.html").read_text()


def test_a_tower_of_transformers_is_built_and_the_phase_is_the_last(here):
    from onediff.model.onediff import OneDiffModel

    config = load_run("mine.yaml")
    assert list(config.phases)[-1] == "polish" and config.phases["polish"].train == ("delta", "projector")
    model = OneDiffModel(config.model)
    assert model.vision.model.config.model_type == "dinov2"


def test_towers_of_the_package_are_built_and_planned(here, capsys):
    import torch

    from onediff.model.onediff import OneDiffModel
    from onediff.model.vision import VisionTower

    (command,) = re.findall(r"^ {4}onediff train (mine.yaml model.vision\S+)", PAGE.read_text(), re.MULTILINE)
    assert main(["plan", *command.split(), "--gpus", "1"]) == 0
    config = load_run("mine.yaml", command.split()[1:]).model
    model = OneDiffModel(config)
    output, levels = model.vision(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert type(model.vision.model).__name__ == "ConvMixer" and output.shape == levels[2].shape == (2, 16, 96)

    model.vision.model.save_pretrained(here / "weights")
    saved = config.vision.model_copy(update={"name": str(here / "weights"), "config": None})
    for name, weight in VisionTower(saved).state_dict().items():
        assert torch.equal(weight, model.vision.state_dict()[name])

    fields = {**config.vision.config, "model_type": "metaclip_2_vision_model"}
    listed = VisionTower(config.vision.model_copy(update={"config": fields}))
    assert listed(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].shape == (1, 16, 96)
    too_large = config.vision.model_copy(update={"image": config.vision.image.model_copy(update={"size": 80})})
    with pytest.raises(UserError, match=r"image.size: 80, but this tower takes images of 64 pixels"):
        VisionTower(too_large)


def test_the_delta_variant_is_built_trains_and_shows_where_it_looked(here):
    import torch
    from models import TINY, batch

    from onediff.config.model import ModelConfig
    from onediff.model.attention_map import attention_maps
    from onediff.model.onediff import OneDiffModel

    assert load_run("mine.yaml", ["model.delta={kind: gated, options: {start: 0.5}}"]).model.delta.kind == "gated"
    torch.manual_seed(0)
    tiny = TINY | {"delta": TINY["delta"] | {"kind": "gated", "options": {"start": 0.5}}}
    model, made = OneDiffModel(ModelConfig.model_validate(tiny)), batch("pair")
    plain = OneDiffModel(ModelConfig.model_validate(TINY))
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "delta.gate"})
    assert not torch.equal(model(made), plain(made))
    model(made).sum().backward()
    assert model.delta.gate.item() == 0.5 and model.delta.gate.grad.abs() > 0
    assert attention_maps(model, made).sum() == pytest.approx(1, abs=1e-5)
    for delta, why in (("{kind: gate}", "no delta module 'gate'"), ("{options: {start: 1}}", "kind is residual")):
        with pytest.raises(UserError, match=why):
            load_run("mine.yaml", [f"model.delta={delta}"])


def test_the_objective_weighs_the_losses_of_captions(here):
    import torch
    from models import TINY, batch

    from onediff.config.model import ModelConfig
    from onediff.config.training import TrainingConfig
    from onediff.model.onediff import OneDiffModel
    from onediff.training.objectives import build_objective

    phase = load_run("mine.yaml").phases["polish"]
    torch.manual_seed(0)
    model, made = OneDiffModel(ModelConfig.model_validate(TINY)), batch("pair", "single")
    losses = model(made)
    torch.testing.assert_close(
        model(made, build_objective(phase, TrainingConfig())), (1 - (-losses).exp()) ** 2 * losses
    )


def test_a_package_that_announces_what_it_does_not_hold_is_named(here, capsys):
    (here / "my_package" / "street.py").unlink()
    assert main(["data", "convert", "street", "--images", "photos", "--out", "data/street"]) == 2
    said = capsys.readouterr().err
    assert "reader 'street': package my-package announces my_package.street:READER, but No module named" in said


def test_a_reader_whose_captions_are_one_string_is_told(here):
    with pytest.raises(UserError, match="notes row 3: the reader gives `captions` as one string"):
        Row(where="notes row 3", id="3", split="train", images={"image": "a.png"}, captions="a street")

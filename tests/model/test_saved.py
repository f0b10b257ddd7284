"""Exported models: loading returns the same weights and captions, and other folders are refused with one line."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from models import batch, tiny_config, tiny_model
from PIL import Image
from streams import PROMPT, SIZE, tokenizer

from onediff.errors import UserError
from onediff.model.answer import answer
from onediff.model.saved import load_model, save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = tiny_model()
    save_model(model, tiny_config(), PROMPT, tokenizer(), folder, {"run": "demo", "step": 3})
    return folder, model


def images() -> list[Image.Image]:
    drawn = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in drawn]


def test_a_loaded_model_has_the_same_weights_and_captions(saved):
    folder, model = saved
    loaded, processor, words, about = load_model(folder)
    assert not loaded.training
    theirs = loaded.state_dict()
    assert theirs.keys() == model.state_dict().keys()
    assert all(weight.equal(theirs[name]) for name, weight in model.state_dict().items())
    made = batch("pair", "single")
    with torch.no_grad():
        torch.testing.assert_close(loaded(made), model(made), rtol=1e-6, atol=1e-6)
    rows = [processor.prompt(images(), None)]
    assert answer(loaded, words, rows, CPU, max_new_tokens=8) == answer(model, tokenizer(), rows, CPU, max_new_tokens=8)
    assert about.prompt == PROMPT
    assert about.trained == {"run": "demo", "step": 3}
    assert processor.image.size == SIZE


def test_a_folder_can_be_moved(saved, tmp_path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(saved[0], folder)
    assert load_model(folder)[0].delta.tokens.equal(saved[1].delta.tokens)
    assert str(saved[0]) not in (folder / "onediff.yaml").read_text()


@torch.no_grad()
def test_half_precision_is_preserved(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    save_model(model, tiny_config(), PROMPT, tokenizer(), tmp_path / "half", {})
    loaded = load_model(tmp_path / "half")[0]
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert all(weight.equal(loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    torch.testing.assert_close(loaded(batch("pair")), model(batch("pair")), rtol=0.02, atol=0.02)


def test_saving_again_replaces_a_model_and_nothing_else(tmp_path):
    folder = tmp_path / "model"
    save_model(tiny_model(0), tiny_config(), PROMPT, tokenizer(), folder, {})
    (folder / "left-over").write_text("")
    second = tiny_model(1)
    save_model(second, tiny_config(), PROMPT, tokenizer(), folder, {})
    assert load_model(folder)[0].delta.tokens.equal(second.delta.tokens)
    assert not (folder / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="this is a file, not a folder"):
        save_model(second, tiny_config(), PROMPT, tokenizer(), mine / "thesis.txt", {})
    with pytest.raises(UserError, match="is not empty and not a saved model"):
        save_model(second, tiny_config(), PROMPT, tokenizer(), mine, {})
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_saving_removes_what_killed_processes_left_and_only_that(tmp_path):
    folder, dead = tmp_path / "model", subprocess.Popen(["true"])
    dead.wait()
    node = os.uname().nodename
    names = {f".tmp-model-{node}-{os.getppid()}", ".tmp-model-elsewhere-1", f".tmp-model-2-{node}-{dead.pid}"}
    for name in {f".tmp-model-{node}-{dead.pid}", *names}:
        (tmp_path / name / "vision").mkdir(parents=True)
    save_model(tiny_model(0), tiny_config(), PROMPT, tokenizer(), folder, {})
    assert {path.name for path in tmp_path.iterdir()} == {"model", *names}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "not a saved model"),
        (lambda folder: (folder / "onediff.yaml").unlink(), "not a saved model .no onediff.yaml"),
        (lambda folder: (folder / "onediff.yaml").write_text("model: ["), "onediff.yaml: not readable as YAML"),
        (lambda folder: (folder / "onediff.yaml").write_text("model: 3"), "onediff.yaml: model: "),
        (lambda folder: cut(folder / "delta.safetensors"), "delta.safetensors: cannot be read"),
        (lambda folder: (folder / "projector.safetensors").unlink(), "projector.safetensors: cannot be read"),
        (lambda folder: shutil.copy(folder / "delta.safetensors", folder / "projector.safetensors"), "projector.safet"),
        (
            lambda folder: cut(folder / "vision" / "model.safetensors"),
            "vision/model.safetensors: not readable as safetensors",
        ),
        (
            lambda folder: cut(folder / "language" / "model.safetensors"),
            "language/model.safetensors: not readable as safetensors",
        ),
        (
            lambda folder: (folder / "language" / "model.safetensors").unlink(),
            "language: has neither model.safetensors",
        ),
        (lambda folder: (folder / "language" / "config.json").unlink(), "cannot read"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "cannot read"),
    ],
)
def test_a_damaged_model_is_refused_with_one_line(saved, tmp_path, damage, message):
    folder = tmp_path / "damaged"
    shutil.copytree(saved[0], folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as refused:
        load_model(folder)
    assert "damaged" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_part_with_a_missing_weight_is_refused(saved, tmp_path):
    """Hugging Face would initialise it randomly and only warn."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(saved[0], folder)
    for part in ("language", "vision"):
        path = folder / part / "model.safetensors"
        weights = load_file(path)
        gone = sorted(weights)[0]
        save_file({name: weight for name, weight in weights.items() if name != gone}, path, {"format": "pt"})
        with pytest.raises(UserError, match=rf"{part}: its files lack 1 of the \d+ tensors"):
            load_model(folder)
        shutil.copy(saved[0] / part / "model.safetensors", path)
    load_model(folder)

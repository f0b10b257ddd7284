"""The demo's vision tower: what it is taught, and that an interruption changes nothing."""

import pytest
import torch
from safetensors.torch import load_file

from onediff.cli import main
from onediff.config.compose import load_run
from onediff.demo import tower
from onediff.demo.labels import NOTHING, Labels
from onediff.demo.tower import Scenes, TowerTraining, make_tower
from tests.support.small_run import render


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("scenes"), pairs=20, singles=20)


def settings(data, target):
    """The tower and the data of the demo, over there."""
    sets = [f"data.sets.{name}={data / name}" for name in ("pairs", "singles")]
    config = load_run("configs/demo.yaml", [*sets, f"model.vision.name={target}"])
    return config.model.vision, config.data


def test_a_patch_is_labelled_with_the_object_whose_centre_lies_in_it():
    labels = Labels(dict.fromkeys(("shape", "colour", "size", "material"), ("a", "b")))
    thing = {"shape": "b", "colour": "a", "size": "a", "material": "b", "box": [50, 2, 62, 30]}
    classes = labels.of_patches([thing], (90, 60), 3)
    assert classes[1].tolist() == [1, 0, 0, 1], "centre (56, 16) of 90 x 60: second column, first row"
    assert (classes[[0, *range(2, 9)]] == NOTHING).all()


def test_a_run_whose_tower_was_not_made_is_refused_before_it_begins(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "configs/demo.yaml", *(f"data.sets.{name}={data / name}" for name in ("pairs", "singles"))]) == 2
    )
    assert "model.vision.name: data/scenes/tower: no such folder" in (told := capsys.readouterr().err)
    assert "onediff demo-tower" in told and told.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_training_ends_with_the_same_weights(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tower, "SAVE_EVERY", 2)
    monkeypatch.setattr(tower, "HELD_OUT", "test")
    training = TowerTraining(steps=5, batch=4)
    whole = make_tower(*settings(data, tmp_path / "whole"), training)
    read = Scenes.batch

    def stops_at_three(self, step, labels):
        if step == 4:
            raise KeyboardInterrupt
        return read(self, step, labels)

    monkeypatch.setattr(Scenes, "batch", stops_at_three)
    target = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        make_tower(*settings(data, target), training)
    assert not target.exists()
    steps = []
    monkeypatch.setattr(Scenes, "batch", lambda self, step, labels: steps.append(step) or read(self, step, labels))
    again = make_tower(*settings(data, target), training)
    assert steps[0] > 0, "begins again behind what was saved"
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one) and one.keys() == two.keys()
    assert again == whole
    steps.clear()
    make_tower(*settings(data, target), training)
    assert not steps, "a tower that is there is kept"

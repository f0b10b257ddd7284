"""What a phase minimises can be named by another package."""

from importlib.metadata import EntryPoint

import pytest
import torch
from models import TINY, batch
from torch import Tensor

from onediff.config import entry_points
from onediff.config.model import ModelConfig
from onediff.config.plugins import OBJECTIVES
from onediff.config.training import PhaseConfig, TrainingConfig
from onediff.model.onediff import OneDiffModel
from onediff.training.objectives import build_objective
from onediff.training.objectives.captions import CaptionObjective


class HalfObjective(CaptionObjective):
    """Half of the usual loss."""

    def __call__(self, model, made) -> Tensor:
        return super().__call__(model, made) / 2


def phase(**keys):
    return PhaseConfig(mix={"pairs": 1}, steps=1, global_batch=2, micro_batch=2, **keys)


def test_an_objective_of_another_package_is_found_by_its_name(monkeypatch):
    point = EntryPoint("half", f"{__name__}:HalfObjective", OBJECTIVES.group)
    monkeypatch.setattr(entry_points, "entry_points", lambda group: [point] if group == OBJECTIVES.group else [])
    torch.manual_seed(0)
    model, made = OneDiffModel(ModelConfig.model_validate(TINY)), batch("pair", "single")
    usual, half = (build_objective(one, TrainingConfig()) for one in (phase(), phase(objective="half")))
    torch.testing.assert_close(model(made, half), model(made, usual) / 2)
    assert torch.equal(model(made, usual), model(made)), "without one the model gives the loss of its captions"


def test_an_unknown_objective_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"no objective 'caption'.*'captions'"):
        phase(objective="caption")

"""A phase that would not fit into the cluster's GPUs is not queued."""

from pathlib import Path

import pytest

from launcher.fit import check_memory
from launcher.plan import make_plan
from launcher.profile import ClusterProfile
from onediff.config.compose import load_run
from onediff.errors import UserError


def check(profile: ClusterProfile, nodes: tuple[int, int], *overrides: str) -> None:
    config = load_run("configs/onediff_7b.yaml", overrides)
    check_memory(config, profile, make_plan(config, Path("/runs/7b"), profile, nodes, ["one", "two", "evaluate"]))


def test_the_fewest_nodes_that_a_run_may_get_must_hold_it():
    profile = ClusterProfile(gpus_per_node=8, gpu="h100-80g")
    check(profile, (4, 4))
    check(profile, (1, 4))
    with pytest.raises(UserError, match=r"phases.two: needs .* GB per GPU on 1 nodes, but h100-80g has 78.8"):
        check(profile, (1, 4), "parallel.zero_stage=0")


def test_a_profile_that_names_no_gpu_and_a_model_that_cannot_be_planned_are_let_through(capsys):
    check(ClusterProfile(gpus_per_node=8), (1, 1), "parallel.zero_stage=0")
    profile = ClusterProfile(gpus_per_node=8, gpu="l4-24g")
    config = load_run("configs/onediff_7b.yaml")
    plan = make_plan(config, Path("/runs/7b"), profile, (1, 1), ["one"])
    with pytest.raises(UserError, match=r"phases.one: needs"):
        check_memory(config, profile, plan)
    vision = config.model.vision.model_copy(update={"config": {"model_type": "resnet"}})
    config = config.model_copy(update={"model": config.model.model_copy(update={"vision": vision})})
    check_memory(config, profile, plan)
    assert "memory not checked: model.vision: models of type resnet are not supported" in capsys.readouterr().out

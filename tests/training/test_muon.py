"""Muon steps matrices along orthogonal directions, on any number of ranks the same."""

import copy
import shutil

import pytest
import torch
from models import batch, tiny_model
from small_run import metrics, overrides, render, train

from onediff.config.compose import load_run
from onediff.config.training import OptimizerConfig, PhaseConfig
from onediff.errors import UserError
from onediff.training.muon import Muon, orthogonalised
from onediff.training.optimizer import build_muon, build_optimizer, freeze, parameter_groups

UNSHARDED = {"phases.two.matrices": "muon", "phases.two.parallel.zero_stage": 0}


def test_an_orthogonalised_matrix_keeps_its_directions_and_loses_their_lengths():
    given = (
        torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    )
    found = orthogonalised(given)
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.6 and singular.max() < 1.3
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    cosine = (found * (u @ v)).sum((1, 2)) / (20**0.5 * torch.linalg.matrix_norm(found))
    assert cosine.min() > 0.97


def test_only_matrices_of_layers_are_stepped_by_muon():
    """The others move exactly as with AdamW, and a matrix by 0.4 times the learning rate in the root mean square."""
    phase = PhaseConfig(mix={"a": 1}, steps=1, global_batch=1, micro_batch=1)
    models, settings = [tiny_model(), tiny_model()], OptimizerConfig(lr=1e-3)
    models[1].load_state_dict(models[0].state_dict())
    before = copy.deepcopy(models[0].state_dict())
    for model, muon in zip(models, (True, False), strict=True):
        freeze(model, phase)
        groups = parameter_groups(model, phase, settings)
        optimizer, _ = build_muon(groups, settings, None) if muon else build_optimizer(groups, settings, False)
        model.train()(batch("pair", "single")).mean().backward()
        optimizer.step()
    groups = parameter_groups(models[0], phase, settings)
    matrices = {id(weight) for group in groups if group["name"].endswith(".matrices") for weight in group["params"]}
    moved = []
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if id(ours) not in matrices:
            assert torch.equal(ours, theirs), name
        elif ours.grad.abs().max() > 0:
            moved.append((ours - before[name]).square().mean().sqrt().item() / 1e-3)
    assert moved and min(moved) > 0 and 0.2 < max(moved) < 0.5  # less where the gradient has a low rank


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (4, 3, 2, 2)])
def test_two_steps_equal_a_plain_version(shape):
    """With Nesterov's momentum, for wide and tall matrices and for a convolution's."""
    weight, momentum, expected = torch.nn.Parameter(torch.zeros(shape)), torch.zeros(shape), torch.zeros(shape)
    optimizer = Muon([{"params": [weight], "matrices": True}], lr=0.5, weight_decay=0.0)
    for seed in (0, 1):
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * weight.grad
        wide = (0.05 * weight.grad + 0.95 * momentum).flatten(1)
        tall = wide.shape[0] > wide.shape[1]
        (made,) = orthogonalised((wide.T if tall else wide)[None])
        update = (made.T if tall else made).reshape(shape)
        expected -= 0.5 * 0.4 * max(wide.shape) ** 0.5 * update
    torch.testing.assert_close(weight.data, expected)


def test_matrices_decay_as_with_adamw():
    weight = torch.nn.Parameter(torch.ones(4, 6))
    weight.grad = torch.zeros_like(weight)
    Muon([{"params": [weight], "matrices": True}], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(weight.data, torch.full((4, 6), 0.95))


def test_ranks_share_the_work_and_a_run_resumes_on_another_number_of_them(tmp_path):
    data, two, settings = render(tmp_path / "scenes"), tmp_path / "two", {**UNSHARDED, "phases.two.checkpoint_every": 3}
    done = train(two, data, 6, "--processes", "2", **settings)
    assert done.returncode == 0, done.stderr
    assert "Muon for matrices" in done.stderr
    one = shutil.copytree(two, tmp_path / "one")
    (one / "phase-two" / "finished.json").unlink()
    shutil.rmtree(one / "checkpoints" / "phase-two" / "step-00000006")
    (one / "tracking" / "phase-two.jsonl").unlink()
    done = train(one, data, 6, "--processes", "1", "--resume", **settings)
    assert done.returncode == 0, done.stderr
    expected, found = metrics(two, "two"), metrics(one, "two")
    assert sorted(found) == [4, 5, 6]
    assert list(found.values()) == pytest.approx([expected[step] for step in found], abs=1e-5)


def test_muon_is_refused_where_matrices_are_partitioned(tmp_path):
    for more, why in (
        (
            {"phases.two.matrices": "muon"},
            "this phase partitions them; use adamw, or phases.two.parallel.zero_stage: 0",
        ),
        ({**UNSHARDED, "parallel.tensor": 2}, "parallel.tensor is 2; use adamw"),
    ):
        with pytest.raises(UserError, match=f"phases.two.matrices: muon needs whole matrices, but {why}"):
            load_run("configs/demo.yaml", overrides(tmp_path, 2, **more))

"""Tokens in front of the language model learn its words without a pass of the language model."""

import pytest
import small_run
import torch
from models import batch, rows, tiny_model

from onediff.config.training import PhaseConfig, TrainingConfig
from onediff.data.rows import collate, collate_packed
from onediff.errors import UserError
from onediff.training.objectives import build_objective

TRAIN = ("vision", "delta", "projector")


def objective(train=TRAIN):
    phase = PhaseConfig(mix={"pairs": 1}, steps=1, global_batch=2, micro_batch=2, objective="words", train=train)
    return build_objective(phase, TrainingConfig())


def test_the_words_of_each_caption_come_to_be_found_in_the_tokens_of_its_own_images():
    model, made = tiny_model(), batch("pair", "single", "pair", "single")
    model.language.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 3e-3)
    chance = torch.log(torch.tensor(float(len(made.target_ids.unique()))))
    for _ in range(200):
        optimizer.zero_grad()
        losses = model(made, objective())
        losses.mean().backward()
        optimizer.step()
    # A caption of n different words, all found, gives each of them a share of 1/n.
    row = made.target_places // made.token_ids.shape[1]
    known = torch.stack([torch.log(torch.tensor(float(len(made.target_ids[row == one].unique())))) for one in row])
    assert losses.shape == (made.targets,) and losses.dtype == torch.float32
    assert losses.mean() < known.mean() + 0.25 * (chance - known.mean())


def test_a_pair_is_told_by_its_delta_tokens_and_a_single_image_by_its_own():
    for kind, taught, others in (("pair", "delta_out", "picture_out"), ("single", "picture_out", "delta_out")):
        model = tiny_model()
        model(batch(kind), objective()).sum().backward()
        gradients = {name: getattr(model.projector, name).weight.grad for name in (taught, others)}
        assert gradients[taught].any() and not gradients[others].any()


def test_ranks_that_share_the_model_have_the_losses_of_one(tmp_path):
    data = small_run.render(tmp_path / "data")
    keys = {"phases.warm-up.objective": "words", "phases.warm-up.train": "[vision, delta, projector]"}
    losses = []
    for name, shared in (("alone", {}), ("tensor", {"parallel.tensor": 2}), ("context", {"parallel.context": 2})):
        words = ["--phases", "warm-up", "--processes", "2" if shared else "1"]
        done = small_run.train(tmp_path / name, data, 3, *words, **keys, **shared)
        assert done.returncode == 0, done.stderr
        losses.append(list(small_run.metrics(tmp_path / name, "warm-up").values()))
    assert len(losses[0]) == 3
    for other in losses[1:]:
        assert losses[0] == pytest.approx(other, abs=1e-5)


def test_packed_samples_have_the_losses_they_have_alone():
    model = tiny_model()
    made = rows("pair", "single", "text", "pair")
    alone = model(collate(made), objective())
    together = model(collate_packed([made[:2], made[2:]], sum(len(row.token_ids) for row in made)), objective())
    torch.testing.assert_close(together, alone)


def test_a_caption_without_images_teaches_nothing():
    model, made = tiny_model(), batch("text")
    losses = model(made, objective())
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.full_like(losses, float(len(made.target_ids.unique()))).log())
    assert not any(p.grad is not None and p.grad.any() for p in model.projector.parameters())


def test_a_phase_that_trains_the_language_model_is_refused():
    with pytest.raises(UserError, match="remove `language` from `train`"):
        objective((*TRAIN, "language"))

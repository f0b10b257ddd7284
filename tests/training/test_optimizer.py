"""Which parts train, with what rate and decay."""

import pytest
import torch
from models import batch, tiny_config, tiny_model

from onediff.config.training import OptimizerConfig, PhaseConfig
from onediff.errors import UserError
from onediff.model.onediff import PARTS, OneDiffModel
from onediff.training.optimizer import freeze, parameter_groups, trainable


def phase(**options: object) -> PhaseConfig:
    return PhaseConfig(**{"mix": {"a": 1}, "steps": 1, "global_batch": 1, "micro_batch": 1, **options})


def test_freezing():
    model = tiny_model()
    freeze(model, phase(train=["delta", "projector"]))
    for part in PARTS:
        trains = {parameter.requires_grad for parameter in getattr(model, part).parameters()}
        assert trains == {part in ("delta", "projector")}
    freeze(model, phase())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_trained_parameter_is_in_one_group():
    model = tiny_model()
    groups = parameter_groups(model, phase(), OptimizerConfig())
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    some = parameter_groups(model, phase(train=["delta"]), OptimizerConfig())
    assert {group["part"] for group in some} == {"delta"}
    assert sum(len(group["params"]) for group in some) == len(list(model.delta.parameters()))


def test_shared_weights_are_in_one_group():
    config = tiny_config()
    tied = config.language.model_copy(update={"config": {**config.language.config, "tie_word_embeddings": True}})
    model = OneDiffModel(config.model_copy(update={"language": tied}))
    assert model.language.get_output_embeddings().weight is model.language.get_input_embeddings().weight
    grouped = [id(p) for group in parameter_groups(model, phase(), OptimizerConfig()) for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))


def test_only_matrices_decay():
    model = tiny_model()
    groups = {group["name"]: group for group in parameter_groups(model, phase(), OptimizerConfig(weight_decay=0.1))}
    decaying = {id(p) for group in groups.values() if group["weight_decay"] for p in group["params"]}
    by_name = {name: id(parameter) in decaying for name, parameter in model.named_parameters()}
    assert by_name["projector.picture_in.weight"]
    assert by_name["delta.layers.0.expand.weight"]
    assert by_name["language.lm_head.weight"]
    (patches,) = [name for name in by_name if name.endswith("patch_embedding.weight")]
    assert by_name[patches]
    assert not by_name["delta.tokens"]
    assert not by_name["language.model.embed_tokens.weight"]
    assert not any(decays for name, decays in by_name.items() if name.endswith("bias") or "norm" in name)
    assert {group["weight_decay"] for group in groups.values()} == {0.1, 0.0}


def test_rates_by_part():
    made = parameter_groups(tiny_model(), phase(lr=2e-5, lr_of={"vision": 2e-6}), OptimizerConfig(lr=1e-3))
    assert {group["part"]: group["peak_lr"] for group in made} == {
        "vision": 2e-6,
        "delta": 2e-5,
        "projector": 2e-5,
        "language": 2e-5,
    }
    made = parameter_groups(tiny_model(), phase(), OptimizerConfig(lr=1e-3))
    assert {group["lr"] for group in made} == {1e-3}


def test_decay_by_part():
    made = parameter_groups(tiny_model(), phase(weight_decay_of={"delta": 0.3}), OptimizerConfig(weight_decay=0.1))
    decays = {group["name"]: group["weight_decay"] for group in made}
    assert (decays["delta.matrices"], decays["delta.others"], decays["language.matrices"]) == (0.3, 0.0, 0.1)
    with pytest.raises(ValueError, match=r"weight_decay_of\.vision: this phase does not train this part"):
        phase(train=["delta"], weight_decay_of={"vision": 0.1})


def test_the_last_layers_of_the_tower_train_alone():
    model = tiny_model()
    last = phase(vision_last=1)
    freeze(model, last)
    trains = {name for name, p in model.vision.named_parameters() if p.requires_grad}
    assert trains == {name for name, _ in model.vision.named_parameters() if ".layers.2." in name}
    grouped = {id(p) for group in parameter_groups(model, last, OptimizerConfig()) for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    model(batch("pair")).mean().backward()
    assert {name for name, p in model.vision.named_parameters() if p.grad is not None} <= trains
    assert any(p.grad is not None for p in model.vision.parameters())


def test_last_layers_that_are_not_there_or_not_read_are_named():
    with pytest.raises(UserError, match="vision_last: 4, but the vision tower has 3 layers"):
        freeze(tiny_model(), phase(vision_last=4))
    config = tiny_config()
    shallow = config.model_copy(update={"vision": config.vision.model_copy(update={"levels": (1,), "output_level": 2})})
    with pytest.raises(UserError, match="vision_last: 1 of 3 layers, but the model reads no layer after 2"):
        freeze(OneDiffModel(shallow), phase(vision_last=1))
    with pytest.raises(ValueError, match="vision_last: needs `vision`"):
        phase(train=["delta"], vision_last=1)


@pytest.mark.parametrize("train", [("delta", "projector"), ("language",)])
def test_what_trains_changes_and_what_is_frozen_does_not(train):
    model = tiny_model()
    freeze(model, phase(train=train))
    before = {part: [p.clone() for p in getattr(model, part).parameters()] for part in PARTS}
    optimizer = torch.optim.AdamW(parameter_groups(model, phase(train=train), OptimizerConfig(weight_decay=0.1)))
    model(batch("pair", "single")).mean().backward()
    optimizer.step()
    for part in PARTS:
        same = [a.equal(b) for a, b in zip(before[part], getattr(model, part).parameters(), strict=True)]
        assert all(same) if part not in train else not any(same)


def test_counts_by_part():
    model = tiny_model()
    freeze(model, phase(train=["delta"]))
    counts = trainable(model)
    assert counts["delta"][0] == counts["delta"][1] == sum(p.numel() for p in model.delta.parameters())
    assert [counts[part][1] for part in ("vision", "projector", "language")] == [0, 0, 0]
    assert sum(total for total, _ in counts.values()) == sum(p.numel() for p in model.parameters())

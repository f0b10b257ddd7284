"""Activation checkpointing changes what is kept, not what is computed."""

import pytest
import torch
from models import batch, tiny_model

from benchmarks.counters import Counted
from onediff.config.model import LoraConfig
from onediff.model.lora import add_adapters
from onediff.training.activations import checkpoint_layers


def losses_and_gradients(mode, adapters):
    model = tiny_model().train()
    if adapters:
        add_adapters(model.language, LoraConfig(rank=2))
        for part in (model.vision, model.delta, model.projector):
            part.requires_grad_(False)
    for part in (model.vision.model, model.language):
        checkpoint_layers(part, mode)
    with Counted() as counts:
        losses = model(batch("pair", "single", "text"))
        losses.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses.detach(), gradients, counts.operators


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_losses_and_gradients_are_bit_identical(mode, adapters):
    wanted, wanted_gradients, once = losses_and_gradients("none", adapters)
    found, gradients, operators = losses_and_gradients(mode, adapters)
    assert operators["silu"] == 2 * once["silu"]
    assert (operators["mm"] > once["mm"]) == (mode == "full")
    assert torch.equal(found, wanted)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, wanted_gradients[name]), name

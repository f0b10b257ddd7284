"""Activation checkpointing changes what is kept, not what is computed."""

import flash_standins as standins
import pytest
import torch
from models import batch, tiny_model

from benchmarks.counters import Counted
from onediff.config.model import LoraConfig
from onediff.model import kernels
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


@pytest.mark.parametrize("processor", [standins.flash_attn_3_by_its_operator, standins.torch_varlen_itself])
def test_selective_checkpointing_computes_attention_once_by_any_kernel(monkeypatch, processor):
    calls, found = [], []
    standins.install(monkeypatch, calls, processor)
    monkeypatch.setattr(kernels, "capability", lambda: 9)
    for mode in ("none", "selective", "full"):
        calls.clear()
        model = tiny_model().train().bfloat16()
        for part in (model.vision.model, model.language):
            checkpoint_layers(part, mode)
        losses = model(batch("pair", "single", "text"))
        losses.sum().backward()
        found.append((len(calls), losses.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    standins.forget()
    (once, losses, gradients), (selective, same_losses, same_gradients), (twice, *_) = found
    assert once == selective < twice
    assert torch.equal(losses, same_losses)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same_gradients, strict=True))

"""The forward and backward pass of a training step: no synchronisation with the device, and no tensor of tokens² size."""

import pytest
import torch
from live_tensors import WAITING, LiveTensors
from models import TINY, rows
from packed import KINDS

from onediff.config.model import ModelConfig
from onediff.data.rows import collate, collate_packed
from onediff.model.onediff import OneDiffModel


def step(model, batch):
    with LiveTensors() as seen:
        model(batch).sum().backward()
    return seen


@pytest.fixture(scope="module", params=["clip_vision_model", "dinov2", "siglip_vision_model"])
def model(request):
    torch.manual_seed(0)
    vision = {**TINY["vision"], "config": {**TINY["vision"]["config"], "model_type": request.param}}
    return OneDiffModel(ModelConfig.model_validate({**TINY, "vision": vision})).train()


@pytest.mark.parametrize("kinds", [KINDS, ("text", "text"), ("single",)])
@pytest.mark.parametrize("packed", [False, True])
def test_nothing_in_a_step_waits_for_the_device(model, kinds, packed):
    made = rows(*kinds)
    operators = {operator.overloadpacket for operator in step(model, made_batch(made, packed)).operators}
    assert torch.ops.aten.index in operators  # the mode sees what runs
    assert torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in operators
    assert not operators.intersection(WAITING)


def made_batch(made, packed):
    return collate_packed([made], sum(len(row.token_ids) for row in made) + 7) if packed else collate(made)


def test_the_check_detects_a_step_that_waits():
    with LiveTensors() as seen:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert set(WAITING[:2]) <= {operator.overloadpacket for operator in seen.operators}


@pytest.mark.parametrize("samples", [1, 8])
def test_the_largest_tensor_grows_with_tokens_not_with_their_square(samples):
    """One long sample, or many in a row: no mask and no scores."""
    torch.manual_seed(0)
    language = {**TINY["language"], "config": {**TINY["language"]["config"], "max_position_embeddings": 1024}}
    model = OneDiffModel(ModelConfig.model_validate({**TINY, "language": language})).train()
    largest = {}
    for tokens in (512, 1024):
        (text,) = rows("text")
        long = text.token_ids.repeat(tokens)[: tokens // samples]
        targets = torch.zeros(len(long), dtype=torch.bool)
        targets[-3:] = True
        text.token_ids, text.is_target = long, targets
        largest[tokens] = step(model, collate_packed([[text] * samples], tokens)).largest
    assert largest[1024] < 2.1 * largest[512]
    assert largest[1024] < 1024**2 / 4


def test_the_check_detects_growth_with_a_mask():
    torch.manual_seed(0)
    eager = OneDiffModel(ModelConfig.model_validate(TINY), attention="eager").eval()
    made = rows(*KINDS)
    tokens = sum(len(row.token_ids) for row in made)
    assert step(eager, collate_packed([made], tokens)).largest >= tokens**2

"""The delta module's attention map: the weights of plain attention, computed without changing the module."""

import itertools

import numpy as np
import pytest
import torch
from models import batch, tiny_model
from PIL import Image
from test_delta import HEADS, TOKENS, WIDTH, levels, module  # noqa: F401

from onediff.config.model import ImageConfig
from onediff.data.images import fitted
from onediff.model.attention_map import attention_maps, cross_attention_weights, drawn_over
from onediff.model.delta import place_embedding, spread


@torch.no_grad()
def test_weights_equal_those_of_plain_attention(module):  # noqa: F811
    weights = cross_attention_weights(module, levels(4), 2)
    layer = module.layers[0]
    x, own, cross = module.tokens, layer.self_attention, layer.cross_attention
    x = own(x[None], own.key(x[None]), own.value(x[None]))[0]
    normed = [module.level_norms[0](levels(4)[0][image]) for image in (2, 3)]
    places = place_embedding(torch.tensor(spread(TOKENS)), WIDTH, HEADS)
    keys = torch.cat([cross.key(image) + places + layer.role_keys[role] for role, image in enumerate(normed)])
    queries, size = cross.query(x) + module.places, WIDTH // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        plain = (queries[:, part] @ keys[:, part].T / size**0.5).softmax(-1)
        torch.testing.assert_close(weights[0][1, head].flatten(1), plain, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_computing_a_map_changes_nothing(module):  # noqa: F811
    before = module(levels(), 1)
    cross_attention_weights(module, levels(), 1)
    assert module(levels(), 1).equal(before)
    assert not any(part._forward_hooks for part in module.modules())


def test_a_map_sums_to_one_over_both_images():
    model, given = tiny_model(), batch("pair", "pair")
    maps = attention_maps(model, given)
    assert maps.shape == (2, 2, 2, 2)
    assert maps.sum(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1])
    assert not maps[0].equal(maps[1])


def test_an_image_turns_red_where_the_model_attends():
    image = np.full((40, 60, 3), 100, np.uint8)
    drawn = drawn_over(image, np.array([[0.125, 0.0], [0.0, 0.375]]), ImageConfig(size=28, fit="squash"))
    assert drawn.shape == image.shape and drawn[0, 0].tolist() == [100, 100, 100]
    red, green, blue = drawn[-1, -1].tolist()
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_map_covers_the_part_of_an_image_that_its_cells_saw(fit):
    """For each cell of the tower's grid, the red part of a 2:1 image is the part that the cell sees."""
    config, side = ImageConfig(size=32, fit=fit, mean=(0, 0, 0)), 4
    for row, column in itertools.product(range(side), repeat=2):
        heat = np.zeros((side, side))
        heat[row, column] = 1.0
        drawn = drawn_over(np.zeros((80, 160, 3), np.uint8), heat, config).astype(int)
        red = drawn[..., 0] - drawn[..., 2] > 100
        given = fitted(Image.fromarray(red.astype(np.uint8)[..., None].repeat(3, 2) * 255), config)[0]
        patches = given.reshape(side, 8, side, 8).mean(axis=(1, 3))
        if fit == "pad" and row in (0, 3):
            assert not red.any(), "on the padding"
        else:
            assert np.unravel_index(patches.argmax(), patches.shape) == (row, column)
            assert patches[row, column] > 100 and np.delete(patches, row * side + column).max() < 50
    pale = drawn_over(np.zeros((80, 160, 3), np.uint8), np.full((side, side), 0.5 / side**2), config)[..., 1] > 0
    assert pale.any() == (fit == "crop")
    if fit == "crop":
        assert pale[:, :40].all() and pale[:, -40:].all() and not pale[:, 40:-40].any()

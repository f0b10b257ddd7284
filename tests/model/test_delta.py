"""The delta module: equal to a plain version that lays both normed side by side and attends head by head."""

import math

import pytest
import torch
import torch.nn.functional as F
from live_tensors import LiveTensors

from onediff.config.model import DeltaConfig
from onediff.model.delta import DeltaModule, build_delta, cell_places, place_embedding, spread
from onediff.model.residual_delta import ResidualDelta

WIDTH, HEADS, VISION, TOKENS = 16, 2, 12, 9


@pytest.fixture(params=["vdm", "residual"])
def module(request):
    torch.manual_seed(0)
    config = DeltaConfig(kind=request.param, tokens=5, layers=4, width=WIDTH, heads=HEADS, intermediate=20)
    made = build_delta(config, VISION, 3, TOKENS).eval()
    for parameter in made.parameters():  # biases, norms and roles that matter
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def levels(images: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(images, TOKENS, VISION, generator=generator) for _ in range(3)]


def naive_attention(attention, queries, keys, values):
    """Softmax attention head by head over `[Q, W]`, `[K, W]`, `[K, W]`."""
    size = WIDTH // HEADS
    mixed = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        weights = (queries[:, part] @ keys[:, part].T / size**0.5).softmax(-1)
        mixed.append(weights @ values[:, part])
    return attention.output(torch.cat(mixed, -1))


def naive(module, levels, before: int, after: int) -> torch.Tensor:
    """Delta tokens `[Q, W]` of one pair, both normed laid side by side before anything else."""
    x = module.tokens
    places = place_embedding(torch.tensor(spread(TOKENS)), WIDTH, HEADS)
    for number, layer in enumerate(module.layers):
        level = number * 3 // len(module.layers)
        normed = [module.level_norms[level](levels[level][image]) for image in (before, after)]
        own, cross = layer.self_attention, layer.cross_attention
        x = own.norm(x + naive_attention(own, own.query(x), own.key(x), own.value(x)))
        keys = [cross.key(image) + places + layer.role_keys[role] for role, image in enumerate(normed)]
        values = [cross.value(image) * layer.role_values[role] for role, image in enumerate(normed)]
        queries = cross.query(x) + module.places
        x = cross.norm(x + naive_attention(cross, queries, torch.cat(keys), torch.cat(values)))
        x = layer.norm(x + layer.contract(F.gelu(layer.expand(x))))
    if isinstance(module, ResidualDelta):
        x = x + around(module, places, levels[-1][after]) - around(module, places, levels[-1][before])
    return x


def around(module, places, level) -> torch.Tensor:
    """`[Q, W]`: what an image shows around the place of each token."""
    values, heads = module.difference(module.level_norms[-1](level)), range(0, WIDTH, WIDTH // HEADS)
    parts = [slice(first, first + WIDTH // HEADS) for first in heads]
    scores = [module.places[:, part] @ places[:, part].T / (WIDTH / HEADS) ** 0.5 for part in parts]
    return torch.cat([score.softmax(-1) @ values[:, part] for score, part in zip(scores, parts, strict=True)], -1)


def test_equals_the_plain_version(module):
    """Output and gradients; an image that is in no pair, the last one, changes nothing."""
    given = [level.requires_grad_() for level in levels(5)]
    made = module(given, 2)
    assert made.shape == (2, 5, WIDTH)
    expected = torch.stack([naive(module, given, 0, 1), naive(module, given, 2, 3)])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    wanted = [*given, *module.parameters()]
    weight = torch.randn(made.shape)
    ours, theirs = (torch.autograd.grad((result * weight).sum(), wanted) for result in (made, expected))
    for found, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_residual_token_starts_as_the_difference_at_its_place():
    """Of two images that differ in one patch, the token of this patch alone gets something added."""
    config = DeltaConfig(kind="residual", tokens=TOKENS, layers=1, width=WIDTH, heads=1, intermediate=20)
    made = build_delta(config, VISION, 3, TOKENS)
    before = levels(1)[-1]
    pair = before.repeat(2, 1, 1)
    pair[1, 4] *= -1
    whole, layers = made([pair] * 3, 1), DeltaModule.look
    normed = [made.level_norms[-1](pair[None])] * 3
    added = (whole - layers(made, normed, place_embedding(torch.tensor(spread(TOKENS)), WIDTH, 1), 1))[0]
    assert added[4].norm() > 5 * added[[0, 1, 2, 3, 5, 6, 7, 8]].norm(dim=-1).max()
    assert torch.equal(
        made([pair[:1].repeat(2, 1, 1)] * 3, 1),
        layers(
            made, [normed[0][:, :1].repeat(1, 2, 1, 1)] * 3, place_embedding(torch.tensor(spread(TOKENS)), WIDTH, 1), 1
        ),
    )


@torch.no_grad()
def test_before_and_after_play_different_roles(module):
    forth, back = levels(2), [level.flip(0) for level in levels(2)]
    assert not torch.allclose(module(forth, 1), module(back, 1), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("image", [0, 1])
def test_every_level_of_both_images_is_read(module, level, image):
    changed = levels()
    changed[level][image] *= -1
    assert not torch.allclose(module(changed, 1), module(levels(), 1), atol=1e-4)


def test_keys_and_values_of_a_layer_are_kept_once():
    """For the backward pass: two numbers a channel and token in each layer, and the normed levels."""
    pairs, tokens, layers, width, vision = 2, 300, 4, 32, 24
    config = DeltaConfig(tokens=3, layers=layers, width=width, heads=2, intermediate=8)
    module = DeltaModule(config, vision, levels=2)
    given = [torch.randn(2 * pairs, tokens, vision) for _ in range(2)]
    with LiveTensors() as live:
        made = module(given, pairs)
    grown = 2 * pairs * tokens
    large = sum(size // 4 for size in live.sizes if size // 4 >= grown * vision)
    assert large == grown * (layers * 2 * width + 2 * 2 * vision)  # levels before and after their norm
    made.sum().backward()


def test_layers_share_levels_from_shallow_to_deep():
    config = DeltaConfig(tokens=2, layers=6, width=8, heads=2, intermediate=8)
    assert DeltaModule(config, 8, levels=3).level_of_layer == [0, 0, 1, 1, 2, 2]
    assert DeltaModule(config, 8, levels=1).level_of_layer == [0] * 6


def test_dropout_acts_in_training_only():
    config = DeltaConfig(tokens=4, layers=1, width=WIDTH, heads=HEADS, intermediate=8, dropout=0.5)
    made = DeltaModule(config, VISION, levels=3)
    assert not made.train()(levels(), 1).equal(made(levels(), 1))
    assert made.eval()(levels(), 1).equal(made(levels(), 1))


@pytest.mark.parametrize("points", [1, 2, 9, 16, 20, 64])
def test_tokens_are_spread_over_the_image(points):
    places = spread(points)
    assert len(set(places)) == points
    assert sum(x for x, _ in places) / points == pytest.approx(0.5, abs=0.05)
    assert all(0 < x < 1 and 0 < y < 1 for x, y in places)


@pytest.mark.parametrize(
    ("tokens", "patches", "width", "heads"), [(64, 576, 768, 12), (16, 49, 160, 4), (9, 9, 128, 4)]
)
def test_the_tokens_together_start_by_seeing_every_patch(tokens, patches, width, heads):
    queries = cell_places(tokens, patches, width, heads)
    keys = place_embedding(torch.tensor(spread(patches)), width, heads)
    size = width // heads
    weights = (queries[:, :size] @ keys[:, :size].T / math.sqrt(size)).softmax(-1)
    assert weights.amax(0).min() > 0.25 * tokens / patches, "some patch is seen by no token"
    near = torch.cdist(torch.tensor(spread(tokens)), torch.tensor(spread(patches))) < 1 / math.isqrt(tokens)
    assert (weights * near).sum(-1).min() > 0.9, "a token looks at patches far from its own cell"


def test_a_token_looks_first_at_its_own_place():
    places = place_embedding(torch.tensor(spread(64)), 96, 3)
    nearest = (places @ places.T).argmax(-1)
    assert nearest.tolist() == list(range(64))

"""The model with images of different shapes: batching has no effect, and equal shapes match square images."""

from dataclasses import replace

import pytest
import torch
from drawn import image, pair
from models import FITS, NAFLEX, TINY
from streams import SIZE, make_processor, tokenizer
from test_delta import levels, module  # noqa: F401
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from onediff.config.model import ImageConfig, ModelConfig, VisionConfig
from onediff.data.planes import Planes
from onediff.data.rows import Processor, collate, collate_packed
from onediff.data.sample import Sample
from onediff.data.segments import Segments
from onediff.errors import UserError
from onediff.model.answer import answer
from onediff.model.attention_map import RASTER, attention_maps
from onediff.model.delta import spread
from onediff.model.onediff import OneDiffModel
from onediff.model.vision import VisionTower

PATCH = SIZE // 2
CPU = torch.device("cpu")


@pytest.fixture(params=FITS)
def model(request) -> OneDiffModel:
    torch.manual_seed(0)
    return OneDiffModel(ModelConfig.model_validate(TINY | FITS[request.param])).eval()


def processor(model: OneDiffModel) -> Processor:
    config = FITS["native" if model.vision.own_shape else "tiles"]["vision"]["image"]
    return make_processor(image=ImageConfig(**config), patch=PATCH)


def samples() -> list[Sample]:
    return [pair(0, (20, 12)), pair(1, (30, 14), (30, 14)), pair(2), pair(3, (8, 8), (17, 8))]


@torch.no_grad()
def test_a_sample_gives_the_same_in_a_batch_as_alone(model):
    rows = [processor(model).row(sample, None, 0) for sample in samples()]
    alone = torch.cat([model(collate([row])) for row in rows])
    together = model(collate(rows))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    in_rows = model(collate_packed([rows[:2], rows[2:]], sum(len(row.token_ids) for row in rows)))
    torch.testing.assert_close(in_rows, alone, rtol=1e-5, atol=1e-5)


def test_tower_and_delta_module_run_in_every_batch(model):
    """ZeRO-3 waits forever if one rank gathers weights that another does not."""
    ran: list[list[str]] = []
    for name, part in model.named_modules():
        if name.startswith(("vision", "delta", "projector")):
            part.register_forward_hook(lambda *_, name=name: ran[-1].append(name))
    for sample in samples():
        ran.append([])
        model(collate([processor(model).row(sample, None, 0)])).sum().backward()
        assert ran[-1] == ran[0]
        assert all(parameter.grad is not None for parameter in model.delta.parameters())
        model.zero_grad()


@torch.no_grad()
def test_a_change_anywhere_in_a_wide_image_changes_the_answer_and_shows_in_the_attention_map(model):
    before = image((64, 20))
    losses, maps = [], []
    for left in (0, 30, 58):
        after = before.copy()
        after.paste((255, 0, 0), (left, 6, left + 6, 14))
        row = processor(model).prompt([before, after], None)
        losses.append(model.embed(collate([row], pad_left=True)))
        maps.append(attention_maps(model, collate([row, row], pad_left=True)))
    assert not any(torch.allclose(losses[0], other, atol=1e-4) for other in losses[1:])
    assert maps[0].shape == (2, 2, RASTER, RASTER)
    assert maps[0].sum((1, 2, 3)).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(maps[0][0], maps[0][1])
    made = answer(model, tokenizer(), [row, row], CPU, max_new_tokens=4)
    assert made[0] == made[1]


def of_squares(pairs: int, singles: int, tokens: int) -> Planes:
    """The planes of images with one view each."""
    images = 2 * pairs + singles
    points = torch.tensor(spread(tokens)).repeat(images, 1)
    return Planes(
        lengths=(tokens,) * images,
        chosen=torch.arange(images * tokens),
        boxes=torch.cat([points - 0.1, points + 0.1], 1),
        roles=torch.arange(2 * pairs * tokens) // tokens % 2,
        pairs=Segments.of([2 * tokens] * pairs),
        paired=Segments.of([tokens] * (2 * pairs)),
    )


def test_the_delta_module_gives_the_same_for_equal_planes_as_for_squares(module):  # noqa: F811
    given = [level.requires_grad_() for level in levels(5)]
    planes = of_squares(2, 1, given[0].shape[1])
    weight = torch.randn(2, len(module.tokens), module.tokens.shape[1])
    found = []
    for made in (module(given, 2), module(planes.of_pairs(given), 2, planes)):
        gradients = torch.autograd.grad((made * weight).sum(), [*given, *module.parameters()])
        found.append((made, *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", [None, "sdpa", "eager"])
def test_the_tower_with_images_in_their_own_shape_equals_siglip_2(attention):
    architecture = Siglip2VisionConfig(**{k: v for k, v in NAFLEX.items() if k != "model_type"})
    torch.manual_seed(0)
    theirs = Siglip2VisionModel(architecture).eval()
    config = VisionConfig(config=NAFLEX, levels=(1, 2, 3), image=ImageConfig(fit="native", max_patches=12))
    tower = VisionTower(config, attention).eval()
    tower.model.load_state_dict(theirs.state_dict())
    images = [image(size, number) for number, size in enumerate([(30, 14), (8, 8), (5, 40)])]
    processor = Siglip2ImageProcessorPil(
        patch_size=PATCH, max_num_patches=12, image_mean=config.image.mean, image_std=config.image.std
    )
    inputs = processor(images, return_tensors="pt")
    hidden = theirs(**inputs, output_hidden_states=True).hidden_states
    rows = [make_processor(image=config.image, patch=PATCH).prompt([one], None, "single") for one in images]
    batch = collate(rows)
    output, found = tower(batch.images, batch.planes)
    seen = inputs["pixel_attention_mask"].bool()
    for ours, level in zip((output, *found), (2, 1, 2, 3), strict=True):
        torch.testing.assert_close(batch.planes.of_images(ours), hidden[level][seen], rtol=1e-4, atol=1e-5)


def test_a_tower_refuses_a_fit_that_it_does_not_support():
    clip = TINY["vision"]
    with pytest.raises(UserError, match=r"fit: pad, but a siglip2_vision_model takes .* own shape; use native"):
        VisionTower(VisionConfig(config=NAFLEX, levels=(1,)))
    with pytest.raises(UserError, match=r"fit: native, but a clip_vision_model takes .* of a fixed size; use another"):
        VisionTower(VisionConfig.model_validate({**clip, "image": {"size": SIZE, "fit": "native"}}))


def test_a_batch_moves_with_its_planes(model):
    made = collate([processor(model).row(sample, None, 0) for sample in samples()])
    moved = made.to(torch.device("meta"))
    assert all(value.is_meta for value in vars(moved.planes).values() if isinstance(value, torch.Tensor))
    assert moved.planes.pairs.cu_seqlens.is_meta
    assert replace(made, planes=None).to(CPU).planes is None

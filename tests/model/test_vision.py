"""The tower: the hidden states of the Hugging Face classes, without the class token."""

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from onediff.config.model import ImageConfig, VisionConfig
from onediff.errors import UserError
from onediff.model.vision import VisionTower, vision_architecture

SMALL = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 28, "patch_size": 7}
# Model type, its own class, its architecture, tokens in front of the patches.
TOWERS = {
    "clip_vision_model": (CLIPVisionModel, CLIPVisionConfig(**SMALL, intermediate_size=40), 1),
    "siglip_vision_model": (SiglipVisionModel, SiglipVisionConfig(**SMALL, intermediate_size=40), 0),
    "dinov2": (Dinov2Model, Dinov2Config(**SMALL, mlp_ratio=2), 1),
}
IMAGE = ImageConfig(size=28, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def config(kind: str, **fields: object) -> VisionConfig:
    arch = {"model_type": kind, **TOWERS[kind][1].to_diff_dict()}
    return VisionConfig(**{"config": arch, "levels": (1, 3, 4), "output_level": -2, "image": IMAGE, **fields})


def images(count: int = 3, size: int = 28) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_hidden_states_equal_the_hugging_face_class(kind):
    model_class, arch, extra = TOWERS[kind]
    theirs = model_class(arch).eval()
    tower = VisionTower(config(kind)).eval()
    tower.model.load_state_dict(theirs.state_dict())
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGE.mean, IMAGE.std))
    hidden = theirs((images() / 255 - mean) / std, output_hidden_states=True).hidden_states
    output, levels = tower(images())
    assert tower.tokens == 16
    assert output.shape == (3, 16, 24)
    assert hidden[0].shape[1] == 16 + extra
    torch.testing.assert_close(output, hidden[3][:, extra:])
    for level, number in zip(levels, (1, 3, 4), strict=True):
        torch.testing.assert_close(level, hidden[number][:, extra:])
    assert not torch.allclose(levels[0], levels[1], atol=1e-3)


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_weights_come_from_a_folder(kind, tmp_path):
    theirs = TOWERS[kind][0](TOWERS[kind][1]).eval()
    theirs.save_pretrained(tmp_path)
    spelt_out = config(kind, name=str(tmp_path))
    for tower in (VisionTower(config(kind, name=str(tmp_path), config=None)), VisionTower(spelt_out)):
        assert {n: w.sum() for n, w in tower.model.state_dict().items()} == {
            n: w.sum() for n, w in theirs.state_dict().items()
        }


def test_a_two_tower_model_yields_its_vision_tower():
    both = CLIPConfig(vision_config=TOWERS["clip_vision_model"][1].to_dict()).to_dict()
    found = vision_architecture(VisionConfig(config=both))
    assert (found.model_type, found.hidden_size) == ("clip_vision_model", 24)


@torch.no_grad()
def test_images_do_not_see_each_other():
    tower = VisionTower(config("dinov2")).eval()
    together, _ = tower(images())
    alone, _ = tower(images()[1:2])
    torch.testing.assert_close(together[1:2], alone)


@torch.no_grad()
def test_dinov2_accepts_other_image_sizes():
    tower = VisionTower(config("dinov2", image=ImageConfig(size=42))).eval()
    output, _ = tower(images(2, 42))
    assert output.shape == (2, 36, 24)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": (1, 5)}, r"model.vision.levels: 5 is outside the tower's layers 1 to 4"),
        ({"levels": (0,)}, r"model.vision.levels: 0 is outside"),
        ({"output_level": 5}, r"model.vision.output_level: 5 is outside the tower's 4 layers"),
        ({"output_level": -6}, r"model.vision.output_level: -6 is outside the tower's 4 layers"),
        (
            {"image": ImageConfig(size=35)},
            r"model.vision.image.size: 35, but this tower takes images of 28 pixels",
        ),
        (
            {"image": ImageConfig(fit="native")},
            r"model.vision.image.fit: native, but a clip_vision_model takes images of",
        ),
    ],
)
def test_unsupported_levels_and_sizes_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        VisionTower(config("clip_vision_model", **fields))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"num_channels": 4}, r"model.vision: images have 3 channels, but this tower takes 4"),
        ({"patch_size": 0}, r"model.vision: an image of 28 pixels has no patch of 0 pixels"),
        ({"patch_size": 64}, r"model.vision: an image of 28 pixels has no patch of 64 pixels"),
        ({"image_size": None}, r"model.vision.image.size: 28, but this tower takes images of 0 pixels"),
        ({"num_attention_heads": "four"}, r"model.vision.config: .*expected int, got str \(value: 'four'\)$"),
        ({"hidden_act": "geluu"}, r"model.vision.config.hidden_act: unknown 'geluu' \(did you mean 'gelu'\?\)"),
    ],
)
def test_a_tower_that_cannot_be_built_is_one_line(field, message):
    plain = config("clip_vision_model")
    with pytest.raises(UserError, match=message) as refused:
        VisionTower(plain.model_copy(update={"config": {**plain.config, **field}}))
    assert "\n" not in str(refused.value)


def test_unknown_model_types_and_names(tmp_path):
    with pytest.raises(
        UserError, match=r"model.vision: models of type dinov22 are not supported \(did you mean 'dinov2'\?\)"
    ):
        vision_architecture(VisionConfig(config={"model_type": "dinov22"}))
    with pytest.raises(UserError, match=r"model.vision.name: cannot read") as refused:
        vision_architecture(VisionConfig(name=str(tmp_path)))
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"config: unknown key 'hiden_size' \(did you mean 'hidden_size'\?\)"):
        vision_architecture(VisionConfig(config={"model_type": "dinov2", "hiden_size": 24}))


def test_output_levels_count_from_either_end():
    assert [VisionTower(config("dinov2", output_level=level)).output_level for level in (-1, -2, 0, 4)] == [4, 3, 0, 4]

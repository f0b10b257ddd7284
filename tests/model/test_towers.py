"""Each supported vision tower outputs one token per patch, row by row; every other one is refused by name."""

import re
from pathlib import Path

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from onediff.config.model import VisionConfig
from onediff.config.towers import ANY_SIZE, ONE_SIZE, OWN_SHAPE
from onediff.errors import UserError
from onediff.model.vision import VisionTower, vision_architecture

PATCH, SIZE, WIDTH = 8, 32, 32
SMALL = {
    **dict.fromkeys(("hidden_size", "embed_dim"), WIDTH),
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIZE,
    "patch_size": PATCH,
    "initializer_range": 0.3,
    "num_register_tokens": 2,
}
DOCS = Path(__file__).parents[2] / "docs" / "parallel.md"


def tower(kind: str, size: int) -> VisionTower:
    default = CONFIG_MAPPING[kind]()
    fields = {
        name: [value] * 2 if isinstance(getattr(default, name), list | tuple) else value
        for name, value in SMALL.items()
        if hasattr(default, name)
    }
    image = {"size": size, "fit": "squash"}
    torch.manual_seed(0)
    return VisionTower(VisionConfig(config={"model_type": kind, **fields}, levels=(1, 3), image=image)).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", [*ONE_SIZE, *ANY_SIZE])
def test_a_patch_that_changes_changes_its_own_token_first(kind):
    for size in (SIZE, SIZE + 2 * PATCH):
        if size > SIZE and kind in ONE_SIZE:
            with pytest.raises(UserError, match=f"image.size: {size}, but this tower takes images of {SIZE} pixels"):
                tower(kind, size)
            continue
        model, across = tower(kind, size), size // PATCH
        images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
        other = images.clone()
        other[:, :, PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH] = (
            255 - other[:, :, PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH]
        )
        model.output_level = 0  # the embeddings, before any layer lets tokens see each other
        before, levels = model(images)
        after, _ = model(other)
        assert before.shape == levels[0].shape == (1, across**2, WIDTH)
        assert (before != after).any(-1)[0].nonzero().flatten().tolist() == [across + 2]


def test_other_towers_are_refused_with_one_line():
    covered = {*ONE_SIZE, *ANY_SIZE, *OWN_SHAPE}
    for kind in ("pixtral", "yolos", "swin", "convnext", "qwen2_5_vl_vision", "gemma4_vision", "vitdet", "llama"):
        assert kind not in covered
        with pytest.raises(UserError, match=f"model.vision: models of type {kind} are not supported"):
            vision_architecture(VisionConfig(config={"model_type": kind}))
    table = DOCS.read_text().split("## Which vision towers", 1)[1].split("\n## ")[0]
    found = {
        what: re.findall(r"`([\w-]+)`", line)
        for what, line in re.findall(r"^\| (one size|any size|own shape) \| (.*) \|$", table, re.MULTILINE)
    }
    assert found == {"one size": list(ONE_SIZE), "any size": list(ANY_SIZE), "own shape": list(OWN_SHAPE)}

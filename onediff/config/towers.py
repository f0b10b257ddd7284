"""Supported types of vision towers, by the image sizes that they accept, and checks of `model.vision` against a tower."""

from __future__ import annotations

from typing import NamedTuple

from onediff.config.model import VisionConfig
from onediff.config.plugins import TOWERS
from onediff.config.section import nearest
from onediff.errors import UserError

ONE_SIZE = (
    "aimv2_vision_model",
    "chinese_clip_vision_model",
    "clip_vision_model",
    "deit",
    "ijepa",
    "siglip_vision_model",
    "vit",
    "vit_msn",
)
"""Model types whose position embeddings fit a single image size, as do towers from other packages."""
ANY_SIZE = (
    "beit",
    "data2vec-vision",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "idefics3_vision",
    "internvl_vision",
    "mlcd_vision_model",
    "pixio",
    "sapiens2",
    "smolvlm_vision",
    "tipsv2_vision_model",
)
"""Model types whose position embeddings fit several image sizes or are interpolated."""
OWN_SHAPE = ("siglip2_vision_model",)
"""Model types that take patches in the image's own shape."""


class TowerFields(NamedTuple):
    """The fields of a tower's architecture that `model.vision` must agree with."""

    kind: str
    """its `model_type`"""
    layers: int
    image: int | None
    """side of its images in pixels; None if it takes images in their own shape"""
    patch: int
    """side of a patch in pixels"""
    channels: int


def check_supported(kind: str) -> None:
    """Raises UserError for unsupported types. Supported towers have hidden states with one token per patch, row by row."""
    known = (*ONE_SIZE, *ANY_SIZE, *OWN_SHAPE, *TOWERS.provided())
    if kind not in known:
        raise UserError(
            f"model.vision: models of type {kind} are not supported{nearest(kind, known)}; see docs/extending.md"
        )


def check_levels(config: VisionConfig, layers: int) -> None:
    """Raises UserError if a tower with `layers` layers lacks one of the configured levels."""
    for level in config.levels:
        if not 1 <= level <= layers:
            raise UserError(f"model.vision.levels: {level} is outside the tower's layers 1 to {layers}")
    if not -layers <= config.output_level + 1 <= layers + 1:
        raise UserError(f"model.vision.output_level: {config.output_level} is outside the tower's {layers} layers")


def check_tower(config: VisionConfig, tower: TowerFields) -> None:
    """Raises UserError if the configured levels or images do not match the tower."""
    check_levels(config, tower.layers)
    size = config.image.size
    if tower.channels != 3:
        raise UserError(
            f"model.vision: images have 3 channels, but this tower takes {tower.channels}; use another tower"
        )
    native = tower.kind in OWN_SHAPE
    if native != (config.image.fit == "native"):
        raise UserError(
            f"model.vision.image.fit: {config.image.fit}, but a {tower.kind} takes images "
            + ("in their own shape; use native" if native else "of a fixed size; use another fit")
        )
    if tower.kind not in (*ANY_SIZE, *OWN_SHAPE) and size != tower.image:
        raise UserError(
            f"model.vision.image.size: {size}, but this tower takes images of {tower.image} pixels; use that"
        )
    if tower.patch < 1 or (not native and tower.patch > size):
        raise UserError(
            f"model.vision: an image of {size} pixels has no patch of {tower.patch} pixels; correct patch_size, or use a "
            "tower for images of that size"
        )

"""Sizes of the vision tower and the language model, read from their Hugging Face configurations without transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

from onediff.config.model import DeltaConfig, ModelConfig, PretrainedPart
from onediff.config.towers import OWN_SHAPE, TowerFields, check_supported, check_tower
from onediff.errors import UserError
from onediff.hub.named import Named
from onediff.hub.planes_onediff import best_grid, native_shape

USUAL_IMAGE = (640, 480)
"""Width and height in pixels: the most common size in COCO."""

# The defaults that transformers applies to missing fields; a test compares them with transformers itself.
TOWERS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {"image_size": 224, "patch_size": 32, "intermediate_size": 3072, "hidden_act": "quick_gelu"},
    "siglip_vision_model": {
        "image_size": 224,
        "patch_size": 16,
        "intermediate_size": 3072,
        "hidden_act": "gelu_pytorch_tanh",
        "vision_use_head": True,
    },
    "siglip2_vision_model": {
        "num_patches": 256,
        "patch_size": 16,
        "intermediate_size": 3072,
        "hidden_act": "gelu_pytorch_tanh",
        "vision_use_head": True,
    },
    "dinov2": {"image_size": 224, "patch_size": 14, "mlp_ratio": 4, "use_swiglu_ffn": False, "qkv_bias": True},
}
WITHOUT_CLASS = (
    "aimv2_vision_model",
    "idefics3_vision",
    "ijepa",
    "siglip2_vision_model",
    "siglip_vision_model",
    "smolvlm_vision",
)
"""Towers without a class token."""
GATED = ("aimv2_vision_model",)
"""Towers with a gated feed-forward whose configuration does not say so."""
TOWER_DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3}

DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 11008, "vocab_size": 32000, "attention_bias": False, "mlp_bias": False},
    "mistral": {"intermediate_size": 14336, "vocab_size": 32000, "num_key_value_heads": 8},
    "qwen2": {"intermediate_size": 22016, "vocab_size": 151936, "num_key_value_heads": 32},
    "qwen3": {
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "attention_bias": False,
    },
}
DECODER_DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Tower:
    """A vision transformer."""

    kind: str
    width: int
    layers: int
    heads: int
    intermediate: int
    channels: int
    image_size: int
    """Side of the images, in pixels, for which the position embeddings were built."""
    patch: int
    activation: str
    gated: bool = False
    """Whether the feed-forward has three matrices instead of two."""
    qkv_bias: bool = True
    head: bool = False
    """Whether it has SigLIP's pooling head, which is computed although its result is unused."""
    extra: int = 1
    """Class and register tokens."""


@dataclass(frozen=True)
class DecoderSizes:
    """A Llama-shaped causal language model."""

    kind: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_norms: bool
    """Whether attention normalises queries and keys per head (Qwen3)."""


@dataclass(frozen=True)
class Sizes:
    """Everything the plan needs to know about the model."""

    tower: Tower
    delta: DeltaConfig
    decoder: DecoderSizes
    image: int
    """Side of a view in pixels."""
    levels: tuple[int, ...]
    output_level: int
    """1 to the number of layers; 0 is the embedding."""
    views: int = 1
    """Views per image: with `fit: tiles`, the overview plus the maximum number of tiles."""
    patches: int | None = None
    """With `fit: native`, the maximum number of patches in an image."""

    def usual(self) -> Sizes:
        """The same model fed images of `USUAL_IMAGE` size instead of the largest, if the tower's input depends on it."""
        if self.views > 1:
            columns, rows = best_grid([USUAL_IMAGE] * 2, self.image, self.views - 1)
            return replace(self, views=1 + columns * rows if columns * rows > 1 else 1)
        if self.patches is not None:
            rows, columns = native_shape(USUAL_IMAGE, self.tower.patch, self.patches)
            return replace(self, patches=rows * columns)
        return self

    @property
    def view_tokens(self) -> int:
        """Patch tokens in one view."""
        return (self.image // self.tower.patch) ** 2 if self.patches is None else self.patches

    @property
    def image_tokens(self) -> int:
        """Maximum number of image tokens for one image."""
        return self.views * self.view_tokens


def sizes_of(config: ModelConfig) -> Sizes:
    """Sizes of the whole model. Raises UserError if a part's architecture cannot be read, is unknown or does not fit."""
    tower, image = tower_of(fields_of(config.vision, "model.vision")), config.vision.image
    check_tower(config.vision, TowerFields(tower.kind, tower.layers, tower.image_size, tower.patch, tower.channels))
    return Sizes(
        tower=tower,
        delta=config.delta,
        decoder=decoder_of(fields_of(config.language, "model.language")),
        image=image.size,
        levels=config.vision.levels,
        output_level=config.vision.output_level % (tower.layers + 1),
        views=1 + image.max_tiles if image.fit == "tiles" else 1,
        patches=image.max_patches if image.fit == "native" else None,
    )


def tower_of(fields: dict[str, Any]) -> Tower:
    """Builds a Tower from the fields of its configuration; for a two-tower model such as CLIP, from its vision tower's.

    A type missing from `TOWERS` is treated as a plain vision transformer of the given sizes. Raises UserError if a size
    is missing.
    """
    fields = fields.get("vision_config", fields)
    kind = fields.get("model_type", "")
    check_supported(kind)
    if kind not in TOWERS:
        needed = (
            *TOWER_DEFAULTS,
            "image_size",
            "patch_size",
            "mlp_ratio" if "mlp_ratio" in fields else "intermediate_size",
        )
        missing = next((name for name in needed if name not in fields and name != "num_channels"), None)
        if missing:
            raise UserError(f"model.vision: cannot plan for towers of type {kind!r}: the configuration lacks {missing}")
    known = {**TOWER_DEFAULTS, **TOWERS.get(kind, {}), **fields}
    _check_numbers("model.vision", known, (*TOWER_DEFAULTS, "patch_size"))
    width = known["hidden_size"]
    inner = int(width * known["mlp_ratio"]) if "mlp_ratio" in known else known["intermediate_size"]
    thirds, own_shape = bool(known.get("use_swiglu_ffn")), kind in OWN_SHAPE
    return Tower(
        kind=kind,
        width=width,
        layers=known["num_hidden_layers"],
        heads=known["num_attention_heads"],
        intermediate=(int(inner * 2 / 3) + 7) // 8 * 8 if thirds else inner,
        channels=known["num_channels"],
        image_size=isqrt(known["num_patches"]) * known["patch_size"] if own_shape else _side(known["image_size"]),
        patch=_side(known["patch_size"]),
        activation=known.get("hidden_act", "gelu"),
        gated=thirds or bool(known.get("use_gated_mlp")) or kind in GATED,
        qkv_bias=known.get("qkv_bias", True),
        head=known.get("vision_use_head", False),
        extra=0 if kind in WITHOUT_CLASS else 1 + (known.get("num_register_tokens") or 0),
    )


def _check_numbers(where: str, fields: dict[str, Any], names: Iterable[str]) -> None:
    """Raises UserError for a size that is not a positive whole number, or one for each side."""
    for name in names:
        sides = fields[name] if isinstance(fields[name], list | tuple) else [fields[name]]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise UserError(f"{where}.config.{name}: must be a positive whole number, got {fields[name]!r}")


def _side(length: Any) -> int:
    """The side of a square given as one number or as (height, width)."""
    return int(length[0] if isinstance(length, list | tuple) else length or 0)


def decoder_of(fields: dict[str, Any]) -> DecoderSizes:
    """Builds DecoderSizes from the fields of a configuration; an unknown type is treated as a Llama of the given sizes.

    Raises UserError if a size is missing.
    """
    fields = fields.get("text_config", fields)
    kind = fields.get("model_type", "")
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if kind not in DECODERS:
        missing = [name for name in sizes if name not in fields]
        if missing:
            raise UserError(
                f"model.language: cannot plan for models of type {kind!r}: the configuration lacks {missing[0]}"
            )
    known = {**DECODER_DEFAULTS, **DECODERS.get(kind, {}), **fields}
    _check_numbers("model.language", known, sizes)
    heads = known["num_attention_heads"]
    bias = bool(known.get("attention_bias"))
    return DecoderSizes(
        kind=kind,
        width=known["hidden_size"],
        layers=known["num_hidden_layers"],
        heads=heads,
        kv_heads=known.get("num_key_value_heads") or heads,
        head_size=known.get("head_dim") or known["hidden_size"] // heads,
        intermediate=known["intermediate_size"],
        vocabulary=known["vocab_size"],
        tied=bool(known["tie_word_embeddings"]),
        qkv_bias=bias or kind == "qwen2",
        out_bias=bias,
        mlp_bias=bool(known.get("mlp_bias")),
        head_norms=kind == "qwen3",
    )


def fields_of(part: PretrainedPart, where: str) -> dict[str, Any]:
    """A part's Hugging Face configuration, from its `config` key, a folder, or the local hub cache.

    Planning downloads nothing: raises UserError naming the key `where` if none of these has it.
    """
    if part.config is not None:
        return dict(part.config)
    assert part.name is not None
    file = (Named(where, part.name, part.revision).folder() or Path(part.name)) / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where}.name: {part.name!r} has no readable config.json on this machine ({type(error).__name__}); run "
            f"`onediff fetch CONFIG`, or write the architecture as {where}.config, as in configs/models/onediff_7b.yaml"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    return found

"""The model's architecture. Imports no torch, for planning and launching."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from onediff.config.plugins import DELTA_MODULES
from onediff.config.section import Section

SAVED_MODEL_FILE = "onediff.yaml"
"""The file that marks a folder as a saved model."""


class PretrainedPart(Section):
    """A Hugging Face model: pretrained weights by `name`, or random weights by `config`."""

    name: str | None = None
    """Hub id or folder of pretrained weights."""
    revision: str | None = None
    """Hub revision to pin."""
    config: dict[str, Any] | None = None
    """Architecture as a Hugging Face configuration (`model_type` and its fields). Without `name`, the part starts from
    random weights. With `name`, the weights still come from `name`, and this only saves looking it up on the hub."""

    @model_validator(mode="after")
    def _has_an_origin(self) -> PretrainedPart:
        if self.name is None and self.config is None:
            raise ValueError("needs `name` (pretrained weights) or `config` (an architecture to build)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, such as clip_vision_model, dinov2 or llama")
        return self


class ImageConfig(Section):
    """Image preprocessing; the fields correspond to those of the tower's Hugging Face image processor."""

    size: int = Field(336, gt=0)
    """Side of the square input, in pixels."""
    fit: Literal["pad", "crop", "squash", "tiles", "native"] = "pad"
    """`pad`: the whole image, centred in a square of the mean colour (LLaVA-1.5); `crop`: scale the shorter side and crop
    the centre, which loses changes near the edges (CLIP, DINOv2); `squash`: scale both sides (SigLIP); `tiles`: an
    overview and tiles of `size` in a grid chosen by the image size (LLaVA-NeXT); `native`: patches in the image's own
    shape, for towers that support it (SigLIP 2 NaFlex)."""
    max_tiles: int = Field(4, gt=1)
    """With `fit: tiles`, the most tiles per image, in addition to the overview."""
    max_patches: int = Field(256, gt=0)
    """With `fit: native`, the most patches per image; `size` is then ignored."""
    shorter_side: int | None = None
    """With `fit: crop`, the shorter side before the crop; defaults to `size` (DINOv2 scales to 256 and crops 224)."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Per-channel mean of pixels in 0…1; the default is CLIP's."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Per-channel standard deviation; the default is CLIP's."""

    @model_validator(mode="after")
    def _cut_fits(self) -> ImageConfig:
        if self.shorter_side is not None and (self.fit != "crop" or self.shorter_side < self.size):
            raise ValueError(f"`shorter_side` needs fit: crop, here {self.fit}, and must be at least `size`")
        return self


class VisionConfig(PretrainedPart):
    """The siamese vision tower, which encodes both images with the same weights."""

    levels: tuple[int, ...] = Field((8, 16, 24), min_length=1)
    """Encoder layers whose outputs the delta module reads, counted from 1."""
    output_level: int = -2
    """The hidden state that the language model reads: an encoder layer, or a negative index (-1 is the last)."""
    image: ImageConfig = ImageConfig()
    """Image preprocessing."""


class DeltaConfig(Section):
    """The Visual Delta Module: BERT-shaped layers in which a few learned tokens attend to both images."""

    kind: str = "vdm"
    """`vdm`, the paper's module; `residual`, the same with the difference between the images' tokens added to its own; or
    the name of a variant from another package."""
    options: dict[str, Any] = {}
    """Settings of a variant, which validates them itself."""
    tokens: int = Field(64, gt=0)
    """Learned delta tokens per pair, passed to the language model."""
    layers: int = Field(6, gt=0)
    """Layers of self-attention, cross-attention and feed-forward; consecutive layers share a level, shallow to deep."""
    width: int = Field(768, gt=0)
    """Hidden size."""
    heads: int = Field(12, gt=0)
    """Attention heads."""
    intermediate: int = Field(3072, gt=0)
    """Hidden size of the feed-forward."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout after attention and feed-forward during training."""
    bert: str | None = None
    """Hub id or folder of a BERT that initialises self-attention, feed-forward and, if shapes match, cross-attention; by
    default they start random."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # `options` is a dict

    @model_validator(mode="after")
    def _heads_divide(self) -> DeltaConfig:
        DELTA_MODULES.check(self.kind)
        if self.options and self.kind in DELTA_MODULES.built_in:
            raise ValueError(f"`options` are for variants, but kind is {self.kind}; remove {', '.join(self.options)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self


class NewTokenizer(Section):
    """A byte-level BPE tokenizer trained on the training captions, for a language model that starts from random weights."""

    vocabulary: int = Field(512, ge=300)
    """Size of the vocabulary, including special tokens; at most the language model's `vocab_size`."""


class LanguageConfig(PretrainedPart):
    """The causal language model that reads both images, the delta tokens and the instruction, and writes the caption."""

    tokenizer: str | NewTokenizer | None = None
    """Hub id or folder; defaults to `name`. A mapping trains a new one on the training captions."""

    @model_validator(mode="after")
    def _has_a_tokenizer(self) -> LanguageConfig:
        if self.tokenizer is None and self.name is None:
            raise ValueError("a language model built from `config` needs `tokenizer`")
        return self


class LoraConfig(Section):
    """Low-rank adapters for the language model's matrices, trained instead of them (LoRA, arXiv 2106.09685)."""

    rank: int = Field(16, gt=0)
    """Rank of each adapter."""
    alpha: int = Field(32, gt=0)
    """An adapter's output is scaled by `alpha / rank`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on an adapter's input during training."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the layers that get an adapter; the default is all matrices in the layers of a Llama-like model."""

    @model_validator(mode="after")
    def _has_targets(self) -> LoraConfig:
        if not self.targets:
            raise ValueError("`targets` names no layer")
        return self


class ModelConfig(Section):
    """OneDiff: tower, delta module, projector, language model (arXiv 2407.05645, section 3)."""

    vision: VisionConfig
    """The tower."""
    delta: DeltaConfig = DeltaConfig()
    """The Visual Delta Module."""
    language: LanguageConfig
    """The language model."""

    def with_parts(self, vision: str, language: str, tokenizer: str) -> ModelConfig:
        """The same model with its parts loaded from these folders."""
        return self.model_copy(
            update={
                "vision": self.vision.model_copy(update={"name": vision, "config": None}),
                "delta": self.delta.model_copy(update={"bert": None}),
                "language": self.language.model_copy(
                    update={"name": language, "config": None, "tokenizer": tokenizer, "revision": None}
                ),
            }
        )

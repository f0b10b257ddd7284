"""The siamese vision tower: any Hugging Face vision model with hidden states."""

from __future__ import annotations

import math
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from onediff.config.section import nearest
from onediff.errors import UserError
from onediff.model.config import PretrainedPart, VisionConfig
from onediff.model.registered import implementation
from onediff.parallel.placement import Placement

ONE_SIZE = ("clip_vision_model", "siglip_vision_model")
"""Model types whose position embeddings fit one picture size; others interpolate them."""


def architecture(part: PretrainedPart, where: str) -> PretrainedConfig:
    """The Hugging Face configuration of a part, from `config` or from `name`.

    Raises UserError naming `where` when the model type is unknown or `name` cannot be read.
    """
    if part.config is not None:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        fields: dict[str, Any] = dict(part.config)
        kind = fields.pop("model_type")
        if kind not in CONFIG_MAPPING:
            raise UserError(f"{where}.config.model_type: unknown {kind!r}{nearest(kind, CONFIG_MAPPING.keys())}")
        return CONFIG_MAPPING[kind](**fields)
    try:
        assert part.name is not None
        return AutoConfig.from_pretrained(part.name, revision=part.revision)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{where}.name: cannot read {part.name!r}: {first}") from None


def pretrained(
    model_class: Any, part: PretrainedPart, arch: PretrainedConfig, where: str, attention: str | None
) -> Any:
    """A model of `model_class` with the weights of `part.name`.

    Raises UserError naming `where` when they cannot be read, or when some are missing, which Hugging Face would draw at
    random.
    """
    try:
        model, report = model_class.from_pretrained(
            part.name, revision=part.revision, config=arch, attn_implementation=attention, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}.name: cannot read the weights in {part.name!r}: {first}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{where}.name: the weights in {part.name!r} lack {len(missing)} tensors, such as {missing[0]}")
    return model


def vision_architecture(config: VisionConfig) -> PretrainedConfig:
    """The tower's own configuration; of a two-tower model such as CLIP, its vision half."""
    found = architecture(config, "model.vision")
    return getattr(found, "vision_config", found)


def picture_tokens(config: VisionConfig, arch: PretrainedConfig) -> int:
    """Patch tokens of one picture, the class token left out."""
    return (config.picture.size // arch.patch_size) ** 2


def check_fits(config: VisionConfig, arch: PretrainedConfig) -> None:
    """Raises UserError when levels or pictures are not such as the tower has and takes."""
    depth = arch.num_hidden_layers
    for level in config.levels:
        if not 1 <= level <= depth:
            raise UserError(f"model.vision.levels: {level} is outside the tower's layers 1 to {depth}")
    if not -depth <= config.output_level + 1 <= depth + 1:
        raise UserError(f"model.vision.output_level: {config.output_level} is outside the tower's {depth} layers")
    size = config.picture.size
    if arch.model_type in ONE_SIZE and size != arch.image_size:
        raise UserError(
            f"model.vision.picture.size: {size}, but this tower takes pictures of {arch.image_size} pixels; use that"
        )


class VisionTower(nn.Module):
    """Pictures to hidden states.

    Runs once on all pictures of a batch, before and after alike: one set of weights, no copy.
    """

    def __init__(self, config: VisionConfig, attention: str | None = None, placement: Placement | None = None) -> None:
        super().__init__()
        arch = vision_architecture(config)
        attention = attention or implementation(AutoModel, arch)
        check_fits(config, arch)
        if placement is not None:
            self.model = placement.build(AutoModel, arch, config.name, revision=config.revision, attention=attention)
        elif config.name is None:
            self.model = AutoModel.from_config(arch, attn_implementation=attention)
        else:
            self.model = pretrained(_class_of(arch), config, arch, "model.vision", attention)
        self.levels = config.levels
        self.output_level = config.output_level % (arch.num_hidden_layers + 1)
        self.tokens = picture_tokens(config, arch)
        self.width = arch.hidden_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.picture.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.picture.std).view(1, 3, 1, 1), persistent=False)

    def train_last(self, layers: int) -> None:
        """Freezes everything but the last `layers` encoder layers. Raises UserError when there are not so many, or when
        nothing that reads the tower reads them."""
        encoder = encoder_layers(self.model)
        depth, deepest = len(encoder), max(*self.levels, self.output_level)
        if layers > depth:
            raise UserError(f"vision_last: {layers}, but the vision tower has {depth} layers")
        if deepest <= depth - layers:
            raise UserError(
                f"vision_last: {layers} of {depth} layers, but layer {deepest} is the last one that is read"
            )
        self.model.requires_grad_(False)
        for layer in encoder[depth - layers :]:
            layer.requires_grad_(True)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features of uint8 pictures.

        Args:
            pictures: `[pictures, 3, size, size]` uint8.

        Returns:
            The output level and the chosen levels, each `[pictures, tokens, width]`, the class token dropped.
        """
        parameter = next(self.model.parameters())
        pixels = ((pictures.float() / 255 - self.mean) / self.std).to(parameter.dtype)
        hidden = self.model(pixels, output_hidden_states=True).hidden_states
        extra = hidden[0].shape[1] - self.tokens
        assert extra >= 0, f"tower gave {hidden[0].shape[1]} tokens, expected at least {self.tokens}"
        return hidden[self.output_level][:, extra:], [hidden[level][:, extra:] for level in self.levels]


def encoder_layers(model: Any, where: str = "vision_last") -> nn.ModuleList:
    """The transformer layers of a Hugging Face model, first to last.

    Raises UserError that names the key `where` for a model in which they are not told apart.
    """
    depth = model.config.num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise UserError(f"{where}: cannot tell which layers of a {model.config.model_type} are the encoder's")
    return found[0]


def _class_of(arch: PretrainedConfig) -> Any:
    with torch.device("meta"):
        return type(AutoModel.from_config(arch))


def side_tokens(tokens: int) -> int:
    """Patch tokens along one side of the square picture."""
    return math.isqrt(tokens)

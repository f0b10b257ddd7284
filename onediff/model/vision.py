"""The siamese vision tower: any Hugging Face vision model with hidden states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from onediff.config.model import PretrainedPart, VisionConfig
from onediff.config.section import nearest
from onediff.config.towers import ANY_SIZE, ONE_SIZE, OWN_SHAPE
from onediff.data.features import read_layers
from onediff.data.planes import Planes
from onediff.data.segments import Segments
from onediff.errors import UserError
from onediff.model.lean import transformers
from onediff.model.registered import NAME, implementation
from onediff.parallel.placement import Placement
from onediff.parallel.pretrained import UNREAD


def architecture(part: PretrainedPart, where: str) -> transformers.PretrainedConfig:
    """The Hugging Face configuration of a part, from `config` or `name`.

    Raises UserError, with the key `where`, if the model type is unknown or `name` cannot be read.
    """
    if part.config is not None:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        fields: dict[str, Any] = dict(part.config)
        kind = fields.pop("model_type")
        if kind not in CONFIG_MAPPING:
            raise UserError(f"{where}.config.model_type: unknown {kind!r}{nearest(kind, CONFIG_MAPPING.keys())}")
        _check_keys(fields, CONFIG_MAPPING[kind], where)
        try:
            return CONFIG_MAPPING[kind](**fields)
        except (StrictDataclassError, TypeError, ValueError) as error:
            hint = "; YAML reads 1e-06 as text, and 1.0e-06 as a number" if "got str" in str(error) else ""
            raise UserError(f"{where}.config: {error}{hint}") from None
    try:
        assert part.name is not None
        return transformers.AutoConfig.from_pretrained(part.name, revision=part.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{where}.name: cannot read {part.name!r}: {first}") from None


def _check_keys(fields: dict[str, Any], config_class: type[transformers.PretrainedConfig], where: str) -> None:
    """Raises UserError for a misspelt key, which the class would silently ignore.

    Other unknown keys pass, because configurations on the hub contain keys that their class does not read.
    """
    known = config_class().to_dict().keys() | config_class.attribute_map.keys()
    for key in fields.keys() - known:
        if close := get_close_matches(key, known, n=1, cutoff=0.85):
            raise UserError(f"{where}.config: unknown key {key!r} (did you mean {close[0]!r}?)")


def pretrained(
    model_class: Any, part: PretrainedPart, arch: transformers.PretrainedConfig, where: str, attention: str | None
) -> Any:
    """A model of `model_class` with the weights of `part.name`.

    Raises UserError, with the key `where`, if they cannot be read or if any are missing, which Hugging Face would initialise
    randomly.
    """
    try:
        model, report = model_class.from_pretrained(
            part.name, revision=part.revision, config=arch, attn_implementation=attention, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}.name: cannot read the weights in {part.name!r}: {first}") from None
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(UNREAD))
    if missing:
        raise UserError(f"{where}.name: the weights in {part.name!r} lack {len(missing)} tensors, such as {missing[0]}")
    return model


def vision_architecture(config: VisionConfig) -> transformers.PretrainedConfig:
    """The tower's configuration; for a two-tower model such as CLIP, that of its vision tower.

    Raises UserError for unsupported types. Supported towers have hidden states with one token per patch, row by row, after
    any extra tokens.
    """
    found = architecture(config, "model.vision")
    found = getattr(found, "vision_config", found)
    if found.model_type not in (*ONE_SIZE, *ANY_SIZE, *OWN_SHAPE):
        raise UserError(
            f"model.vision: models of type {found.model_type} are not supported; docs/parallel.md lists supported types, "
            "such as clip_vision_model, siglip_vision_model, siglip2_vision_model, dinov2, dinov3_vit, internvl_vision"
        )
    return found


def image_tokens(config: VisionConfig, arch: transformers.PretrainedConfig) -> int:
    """Patch tokens of one view, without the class token; with `fit: native`, the most that an image can have."""
    if config.image.fit == "native":
        return config.image.max_patches
    return (config.image.size // side_of(arch.patch_size)) ** 2


def side_of(size: int | Sequence[int]) -> int:
    """The side of a square given as one number or as two (InternVL)."""
    return size if isinstance(size, int) else size[0]


def check_fits(config: VisionConfig, arch: transformers.PretrainedConfig) -> None:
    """Raises UserError if the configured levels or images do not match the tower."""
    depth = arch.num_hidden_layers
    for level in config.levels:
        if not 1 <= level <= depth:
            raise UserError(f"model.vision.levels: {level} is outside the tower's layers 1 to {depth}")
    if not -depth <= config.output_level + 1 <= depth + 1:
        raise UserError(f"model.vision.output_level: {config.output_level} is outside the tower's {depth} layers")
    size, native = config.image.size, arch.model_type in OWN_SHAPE
    if native != (config.image.fit == "native"):
        raise UserError(
            f"model.vision.image.fit: {config.image.fit}, but a {arch.model_type} takes images "
            + ("in their own shape; use native" if native else "of a fixed size; use another fit")
        )
    if arch.model_type in ONE_SIZE and size != (own := side_of(arch.image_size)):
        raise UserError(f"model.vision.image.size: {size}, but this tower takes images of {own} pixels; use that")


class VisionTower(nn.Module):
    """Maps images to hidden states.

    Runs once on all images of a batch, with the same weights for before and after images.
    """

    def __init__(self, config: VisionConfig, attention: str | None = None, placement: Placement | None = None) -> None:
        super().__init__()
        arch = vision_architecture(config)
        attention = attention or implementation(transformers.AutoModel, arch)
        check_fits(config, arch)
        if placement is not None:
            self.model = placement.build(
                transformers.AutoModel, arch, config.name, revision=config.revision, attention=attention
            )
        elif config.name is None:
            self.model = transformers.AutoModel.from_config(arch, attn_implementation=attention)
        else:
            self.model = pretrained(_class_of(arch), config, arch, "model.vision", attention)
        self.levels = config.levels
        self.size = config.image.size
        self.output_level = config.output_level % (arch.num_hidden_layers + 1)
        self.layers = read_layers(config, arch.num_hidden_layers)
        self.tokens = image_tokens(config, arch)
        self.width = arch.hidden_size
        self.own_shape = arch.model_type in OWN_SHAPE
        self.mean: Tensor
        self.std: Tensor
        for name, channels in (("mean", config.image.mean), ("std", config.image.std)):
            values = torch.tensor(channels)
            # A patch is a list of pixels with three channels each.
            shaped = values.repeat(arch.patch_size**2) if self.own_shape else values.view(1, 3, 1, 1)
            self.register_buffer(name, shaped, persistent=False)

    def train_last(self, layers: int) -> None:
        """Freezes everything except the last `layers` encoder layers.

        Raises UserError if there are fewer, or if their outputs are not used.
        """
        encoder = encoder_layers(self.model)
        depth, deepest = len(encoder), max(*self.levels, self.output_level)
        if layers > depth:
            raise UserError(f"vision_last: {layers}, but the vision tower has {depth} layers")
        if deepest <= depth - layers:
            raise UserError(f"vision_last: {layers} of {depth} layers, but the model reads no layer after {deepest}")
        self.model.requires_grad_(False)
        for layer in encoder[depth - layers :]:
            layer.requires_grad_(True)

    def blank(self, device: torch.device) -> Tensor:
        """The smallest possible input: one black image or patch."""
        shape = (1, 1, len(self.mean)) if self.own_shape else (1, 3, self.size, self.size)
        return torch.zeros(shape, dtype=torch.uint8, device=device)

    def forward(self, images: Tensor, planes: Planes | None = None) -> tuple[Tensor, list[Tensor]]:
        """Features of uint8 images.

        Args:
            images: `[views, 3, size, size]` uint8, or with `fit: native` `[images, patches, numbers]`, with shapes in
                `planes`; without `planes`, each image is one row of patches.

        Returns:
            The output level and the chosen levels, each `[views or images, tokens, width]`, without the class token.
        """
        parameter = next(self.model.parameters())
        pixels = ((images.float() / 255 - self.mean) / self.std).to(parameter.dtype)
        shapes = self._shapes(images, planes) if self.own_shape else {}
        hidden = self.model(pixels, output_hidden_states=True, **shapes).hidden_states
        extra = hidden[0].shape[1] - (images.shape[1] if self.own_shape else self.tokens)
        assert extra >= 0, f"tower gave {hidden[0].shape[1]} tokens, expected at least {self.tokens}"
        return hidden[self.output_level][:, extra:], [hidden[level][:, extra:] for level in self.levels]

    def all_layers(self, images: Tensor) -> Tensor:
        """`[views, layers, tokens, width]`: each layer used by `forward`, once; the input of `of_layers`."""
        output, levels = self(images)
        found = {**dict(zip(self.levels, levels, strict=True)), self.output_level: output}
        return torch.stack([found[layer] for layer in self.layers], 1)

    def of_layers(self, layers: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The result of `forward` from that of `all_layers`; if there are no views, zeros for one."""
        if not len(layers):
            layers = layers.new_zeros(1, *layers.shape[1:])
        found = dict(zip(self.layers, layers.unbind(1), strict=True))
        return found[self.output_level], [found[level] for level in self.levels]

    def _shapes(self, patches: Tensor, planes: Planes | None) -> dict[str, Any]:
        """The tower's arguments for images in their own shape. Shapes stay on the host."""
        if planes is None:
            images, longest, _ = patches.shape
            mask = torch.ones(images, 1, 1, longest, dtype=torch.bool, device=patches.device)
            lengths, shapes = Segments.even(images, longest, patches.device), ((1, longest),) * images
        else:
            assert planes.mask is not None and planes.patches is not None
            mask, lengths, shapes = planes.mask, planes.patches, planes.shapes
        arguments: dict[str, Any] = {"pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}
        if self.model.config._attn_implementation == NAME:
            # transformers uses a mask of four dimensions as it is; building one would synchronize with the device.
            return arguments | {"segments": lengths}
        return arguments | {"pixel_attention_mask": mask[:, 0, 0].long()}


def encoder_layers(model: Any, where: str = "vision_last") -> nn.ModuleList:
    """The transformer layers of a Hugging Face model, first to last.

    Raises UserError, with the key `where`, if they cannot be identified.
    """
    depth = model.config.num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise UserError(f"{where}: cannot identify the encoder layers of a {model.config.model_type}")
    return found[0]


def _class_of(arch: transformers.PretrainedConfig) -> Any:
    with torch.device("meta"):
        return type(transformers.AutoModel.from_config(arch))


def side_tokens(tokens: int) -> int:
    """Patch tokens along one side of the square image."""
    return math.isqrt(tokens)

"""The siamese vision tower: any Hugging Face vision model with hidden states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onediff.config.model import VisionConfig
from onediff.config.towers import OWN_SHAPE, TowerFields, check_supported, check_tower
from onediff.data.features import read_layers
from onediff.data.planes import Planes
from onediff.data.segments import Segments
from onediff.errors import UserError
from onediff.model.architecture import architecture
from onediff.model.lean import transformers
from onediff.model.own_tower import register_own_tower
from onediff.model.registered import NAME, implementation
from onediff.parallel.placement import ALONE, Placement


def vision_architecture(config: VisionConfig) -> transformers.PretrainedConfig:
    """The tower's configuration; for a two-tower model such as CLIP, that of its vision tower.

    Raises UserError for unsupported types.
    """
    register_own_tower(config)
    kind = (config.config or {}).get("model_type")
    if kind is not None and not _has_two_towers(kind):
        check_supported(kind)  # before its keys, which differ from those of a supported type
    found = architecture(config, "model.vision")
    found = getattr(found, "vision_config", found)
    check_supported(found.model_type)
    return found


def _has_two_towers(kind: str) -> bool:
    """Whether a model type such as `clip` contains a vision tower and another one."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return kind in CONFIG_MAPPING and "vision_config" in CONFIG_MAPPING[kind].sub_configs


def image_tokens(config: VisionConfig, arch: transformers.PretrainedConfig) -> int:
    """Patch tokens of one view, without the class token; with `fit: native`, the most that an image can have."""
    if config.image.fit == "native":
        return config.image.max_patches
    return (config.image.size // side_of(arch.patch_size)) ** 2


def side_of(size: int | Sequence[int] | None) -> int:
    """The side of a square given as one number or as two (InternVL); 0 if it is not given."""
    return size[0] if isinstance(size, Sequence) else size or 0


def check_fits(config: VisionConfig, arch: transformers.PretrainedConfig) -> None:
    """Raises UserError if the configured levels or images do not match the tower."""
    own = None if arch.model_type in OWN_SHAPE else side_of(arch.image_size)
    fields = TowerFields(
        arch.model_type, arch.num_hidden_layers, own, side_of(arch.patch_size), getattr(arch, "num_channels", 3)
    )
    check_tower(config, fields)


class VisionTower(nn.Module):
    """Maps images to hidden states.

    Runs once on all images of a batch, with the same weights for before and after images.
    """

    def __init__(self, config: VisionConfig, attention: str | None = None, placement: Placement = ALONE) -> None:
        super().__init__()
        arch = vision_architecture(config)
        check_fits(config, arch)
        attention = attention or implementation(transformers.AutoModel, arch)
        self.model = placement.build(
            transformers.AutoModel, arch, config.name, revision=config.revision, attention=attention
        )
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
            # transformers uses a mask of four dimensions as it is; building one would synchronise with the device.
            return arguments | {"segments": lengths}
        return arguments | {"pixel_attention_mask": mask[:, 0, 0].long()}


def encoder_layers(model: Any) -> nn.ModuleList:
    """The transformer layers of a Hugging Face model, first to last. Raises UserError if they cannot be identified."""
    depth = model.config.num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise UserError(f"vision_last: cannot identify the encoder layers of a {model.config.model_type}")
    return found[0]


def side_tokens(tokens: int) -> int:
    """Patch tokens along one side of the square image."""
    return math.isqrt(tokens)

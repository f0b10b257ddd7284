"""The delta modules of the ablation, rebuilt on one model: each trains as many parameters as the Visual Delta Module.

Of each published method only the part that compares two images is rebuilt. Tower, projector, language model, prompt and
decoder are this project's, and so is the number of delta tokens. Shapes: B pairs, N tokens of an image, V tower width,
W width of delta tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from onediff.config.model import DeltaConfig, ModelConfig
from onediff.data.planes import Planes
from onediff.model.delta import DeltaModule, build_delta
from onediff.model.onediff import OneDiffModel
from onediff.model.projector import Projector

DELTAS = ("vdm", "residual", "difference", "none")
PEERS = ("concatenation", "joint", "subtraction")

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Blind(DeltaModule):
    """The Visual Delta Module that is shown nothing: as many parameters, but none of them can help."""

    def forward(self, levels: list[Tensor], pairs: int, planes: Planes | None = None) -> Tensor:
        """`[B, N, W]`, the same for every pair."""
        return super().forward([torch.zeros_like(level) for level in levels], pairs, planes)


class Difference(nn.Module):
    """An MLP on after minus before at the deepest level."""

    def __init__(self, vision_width: int, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = _mlp(vision_width, hidden, width)

    def forward(self, levels: list[Tensor], pairs: int, planes: Planes | None = None) -> Tensor:
        """`[B, N, W]`"""
        before, after = _of_pairs(levels[-1], pairs)
        return self.mlp(after - before)


class Constant(nn.Module):
    """Learned delta tokens that depend on no image."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tokens, width))

    def forward(self, levels: list[Tensor], pairs: int, planes: Planes | None = None) -> Tensor:
        """`[B, N, W]`, the same for every pair."""
        return self.tokens.expand(pairs, -1, -1)


class WiderProjector(Projector):
    """The projector with a second, wider MLP for image tokens, whose output is added.

    With `Constant` delta tokens this is LLaVA-1.5 with two images (arXiv 2310.03744): the language model reads the tokens of
    both, and nothing else compares them. Unlike in `Blind`, all parameters can help. The second MLP starts with output
    zero, so the warm-up's projector stays as it was trained.
    """

    def __init__(self, vision_width: int, delta_width: int, language_width: int, hidden: int) -> None:
        super().__init__(vision_width, delta_width, language_width)
        self.more = _mlp(vision_width, hidden, language_width)
        nn.init.zeros_(self.more[-1].weight)
        nn.init.zeros_(self.more[-1].bias)

    def forward(self, images: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """`[…, V]` and `[B, N, W]`, both into the language model's width."""
        image_tokens, delta_tokens = super().forward(images, deltas)
        return image_tokens + self.more(images), delta_tokens


class Joint(nn.Module):
    """A joint encoder, as in CLIP4IDC (arXiv 2206.00629): pre-norm self-attention over the tokens of both images.

    The tokens of the deepest level get embeddings of their image and their place. In CLIP4IDC these layers are the tower's
    last, pretrained ones, and the decoder reads all 2N outputs; here the layers are new, and delta tokens are the N
    outputs of the after image.
    """

    def __init__(self, config: DeltaConfig, vision_width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision_width)
        self.input = nn.Linear(vision_width, config.width)
        self.roles = nn.Parameter(torch.empty(2, 1, config.width))
        self.places = nn.Parameter(torch.empty(2, config.tokens, config.width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, config.heads, hidden, config.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.output_norm = nn.LayerNorm(config.width)
        for embeddings in (self.roles, self.places):
            nn.init.normal_(embeddings, std=0.5)  # about as large as the tokens, which would drown smaller ones

    def forward(self, levels: list[Tensor], pairs: int, planes: Planes | None = None) -> Tensor:
        """`[B, N, W]`"""
        both = self.input(self.norm(torch.stack(_of_pairs(levels[-1], pairs), 1)))
        x = (both + self.roles + self.places).flatten(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.output_norm(x.unflatten(1, (2, -1))[:, 1])


class LevelDifference(nn.Module):
    """What differs at one level of the tower: both images' tokens, gated by each other, and their difference."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision_width)
        self.input = nn.Linear(vision_width, width)
        self.gate = nn.Linear(2 * width, 2 * width)
        self.output = nn.Linear(3 * width, width)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """`[B, N, W]` from two of `[B, N, V]`."""
        both = torch.cat([self.input(self.norm(before)), self.input(self.norm(after))], -1)
        before, after = (both * self.gate(both).sigmoid()).chunk(2, -1)
        return self.output(torch.cat([before, after, after - before], -1))


class Subtraction(nn.Module):
    """Differences at every level of the tower, fused, as in M3Diff's multi-scale module (arXiv 2503.11093).

    At each level the images' channels gate each other before the subtraction; the levels are summed with weights that
    depend on the level's mean token. M3Diff then attends from the images' tokens to the result; here the language model
    reads both, and an MLP on each token has those parameters.
    """

    def __init__(self, vision_width: int, width: int, levels: int, hidden: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(LevelDifference(vision_width, width) for _ in range(levels))
        self.score = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = _mlp(width, hidden, width)

    def forward(self, levels: list[Tensor], pairs: int, planes: Planes | None = None) -> Tensor:
        """`[B, N, W]`"""
        found = [look(*_of_pairs(level, pairs)) for look, level in zip(self.levels, levels, strict=True)]
        x_BLNW = torch.stack(found, 1)
        weights_BL1W = self.score(x_BLNW.mean(2, keepdim=True)).softmax(1)
        x_BNW = (weights_BL1W * x_BLNW).sum(1)
        return x_BNW + self.mlp(self.norm(x_BNW))


def built(config: ModelConfig, delta: str, seed: int) -> OneDiffModel:
    """The model with the delta module `delta`, one of `DELTAS` and `PEERS`."""
    torch.manual_seed(seed)
    of_paper = config.delta.model_copy(update={"kind": "vdm"})
    model = OneDiffModel(config.model_copy(update={"delta": of_paper}))
    vision_width, width, levels = model.vision.width, of_paper.width, len(config.vision.levels)
    assert of_paper.tokens == model.vision.tokens, "a delta token for each image token"
    parameters = size(model.delta)

    def of(build: Callable[[int], Any]) -> Any:
        return as_large(build, parameters)

    def residual(intermediate: int) -> DeltaModule:
        narrower = of_paper.model_copy(update={"kind": "residual", "intermediate": intermediate})
        return build_delta(narrower, vision_width, levels, model.vision.tokens)

    if delta == "residual":
        model.delta = of(residual)
    elif delta == "difference":
        model.delta = of(lambda hidden: Difference(vision_width, width, hidden))
    elif delta == "none":
        model.delta = Blind(of_paper, vision_width, levels)
    elif delta == "joint":
        model.delta = of(lambda hidden: Joint(of_paper, vision_width, hidden))
    elif delta == "subtraction":
        model.delta = of(lambda hidden: Subtraction(vision_width, width, levels, hidden))
    elif delta == "concatenation":
        model.delta = Constant(of_paper.tokens, width)
        language_width = model.language.config.hidden_size
        model.projector = as_large(
            lambda hidden: WiderProjector(vision_width, width, language_width, hidden),
            size(model.projector) + parameters - size(model.delta),
        )
    else:
        assert delta == "vdm", delta
    return model


def as_large(build: Callable[[int], AnyModule], parameters: int) -> AnyModule:
    """The module `build(hidden)` whose number of parameters is nearest to `parameters`.

    Each hidden unit must add equally many.
    """
    with torch.device("meta"):
        first, second = size(build(1)), size(build(2))
    return build(1 + round((parameters - first) / (second - first)))


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(weight.numel() for weight in module.parameters())


def _of_pairs(level: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Before and after, each `[B, N, V]`, from the tokens of all images `[images, N, V]`, pairs first."""
    before, after = level[: 2 * pairs].unflatten(0, (pairs, 2)).unbind(1)
    return before, after


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))

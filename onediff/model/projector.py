"""The projector: image and delta tokens into the language model's width (LLaVA-1.5's two-layer MLP)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Two MLPs of two layers, one for image tokens and one for delta tokens, since their widths differ."""

    def __init__(self, vision_width: int, delta_width: int, language_width: int) -> None:
        super().__init__()
        self.picture_in = nn.Linear(vision_width, language_width)
        self.picture_out = nn.Linear(language_width, language_width)
        self.delta_in = nn.Linear(delta_width, language_width)
        self.delta_out = nn.Linear(language_width, language_width)

    def forward(self, images: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """`[…, vision width]` and `[pairs, tokens, delta width]`, both into the language model's width."""
        return self.picture_out(F.gelu(self.picture_in(images))), self.delta_out(F.gelu(self.delta_in(deltas)))

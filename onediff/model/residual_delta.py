"""The Visual Delta Module with a shortcut: the difference at a token's place is added to the token."""

from __future__ import annotations

from torch import Tensor, nn

from onediff.config.model import DeltaConfig
from onediff.data.planes import Planes
from onediff.data.segments import Segments
from onediff.model.attention import attention
from onediff.model.delta import DeltaModule


class ResidualDelta(DeltaModule):
    """Delta tokens that start as the difference between the images: after minus before, around each token's place.

    In the paper's module a difference must pass through three or more layers, whose weights are random at first. Here, the
    tokens contain a linear map of it from the first step, and the layers learn what to add.

    Additional cost per pair: `2N·V·W + 2·Q·2N·W` multiply-adds, for N tokens per image, and `2N · (V + 2W)` numbers kept
    for the backward pass.
    """

    def __init__(self, config: DeltaConfig, vision_width: int, levels: int, patches: int | None = None) -> None:
        super().__init__(config, vision_width, levels, patches)
        self.difference = nn.Linear(vision_width, config.width, bias=False)
        nn.init.normal_(self.difference.weight, std=vision_width**-0.5)

    def look(self, normed: list[Tensor], places: Tensor, pairs: int, planes: Planes | None = None) -> Tensor:
        """`[B, Q, W]`: the output of the layers plus, around each token's place, after minus before."""
        deltas_BQW = super().look(normed, places, pairs, planes)
        queries, width = self.places.shape
        value = self.difference(normed[-1])
        at_q = Segments.even(2 * pairs, queries, value.device)
        at_k = Segments.even(2 * pairs, value.shape[-2], value.device) if planes is None else planes.paired
        query, key = self.places.repeat(2 * pairs, 1), places.expand_as(value)
        q, k, v = (t.reshape(-1, self.heads, width // self.heads) for t in (query, key, value))
        sequences = (at_q.cu_seqlens, at_k.cu_seqlens, queries, at_k.longest)
        around = attention(q, k, v, *sequences, lengths_q=at_q.lengths, lengths_k=at_k.lengths)
        before_BQW, after_BQW = around.reshape(pairs, 2, queries, width).unbind(1)
        return deltas_BQW + (after_BQW - before_BQW)

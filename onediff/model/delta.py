"""The Visual Delta Module: learned tokens that look at both images at several depths (paper, section 3.2).

Shape letters: B pairs, P images, N tokens of an image, T tokens of all pairs, Q delta tokens, V tower width, W module
width, H heads, D head size. Images 2b and 2b + 1 are before and after of pair b: their tokens are adjacent, so that
the keys of a pair are a view of the projections of its images, not a copy. If images differ in their number of
tokens (`Planes`), the tokens of all pairs are concatenated, [T, …] instead of [B, 2, N, …].
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onediff.config.model import DeltaConfig
from onediff.config.plugins import DELTA_MODULES
from onediff.data.planes import Planes
from onediff.data.segments import Segments
from onediff.errors import UserError
from onediff.model.attention import attention
from onediff.model.recompute import made_again

PEAK = 2.0
"""Amplitude of the place embeddings: it makes a token start by attending almost only to its own cell."""
RIDGE = 1e-3
"""Share of a product that is added where the keys of a cell are nearly dependent, as those of narrow heads are."""
SAME = 1e-6
"""Distances that differ by less are equal: a patch between two cells belongs to both."""


class Attention(nn.Module):
    """Multi-head attention of queries over given keys and values, followed by BERT's residual and norm."""

    def __init__(self, config: DeltaConfig, source_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(source_width, config.width)
        self.value = nn.Linear(source_width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BQW: Tensor, key: Tensor, value: Tensor, places_QW: Tensor | None = None, at_k: Segments | None = None
    ) -> Tensor:
        """`[B, Q, W]` queries over keys and values `[…, W]`, already projected by `key` and `value`.

        `places_QW` is added to the projected queries: where in the images each of them looks. `at_k` assigns the keys to
        pairs; without it, each of B has equally many.
        """
        query_BQW = self.query(x_BQW) if places_QW is None else self.query(x_BQW) + places_QW
        pairs, queries = x_BQW.shape[:2]
        at_q = Segments.even(pairs, queries, x_BQW.device)
        q, k, v = (t.flatten(0, -2).unflatten(-1, (self.heads, -1)) for t in (query_BQW, key, value))
        at_k = at_k or Segments.even(pairs, len(k) // pairs, x_BQW.device)
        places = (at_q.cu_seqlens, at_k.cu_seqlens, queries, at_k.longest)
        mixed = attention(q, k, v, *places, lengths_q=at_q.lengths, lengths_k=at_k.lengths)
        return self.norm(x_BQW + self.dropout(self.output(mixed.flatten(1).unflatten(0, (pairs, -1)))))


class DeltaLayer(nn.Module):
    """Self-attention among delta tokens, cross-attention to both images, feed-forward; post-norm as in BERT."""

    def __init__(self, config: DeltaConfig, vision_width: int) -> None:
        super().__init__()
        self.self_attention = Attention(config, config.width)
        self.cross_attention = Attention(config, vision_width)
        self.role_keys = nn.Parameter(torch.empty(2, config.width))
        self.role_values = nn.Parameter(torch.empty(2, config.width))
        self.expand = nn.Linear(config.width, config.intermediate)
        self.contract = nn.Linear(config.intermediate, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BQW: Tensor, level: Tensor, places_QW: Tensor, places: Tensor, planes: Planes | None = None
    ) -> Tensor:
        """One layer over a level `[B, 2, N, V]` with its tokens' `places` `[N, W]`; with `planes` `[T, V]` and `[T, W]`.

        Before and after have an embedding each: added to the keys, multiplied into the values. A token that attends to one
        place in both images thus receives sums of their values in some channels and differences in others.

        Keys and values are kept once for the backward pass: sums keep nothing, and the multiplied values are recomputed.
        """
        own, cross = self.self_attention, self.cross_attention
        x_BQW = own(x_BQW, own.key(x_BQW), own.value(x_BQW))
        found, keys_2W, values_2W = cross.value(level), self.role_keys[:], self.role_values[:]

        def of_tokens(of_roles_2W: Tensor) -> Tensor:
            return of_roles_2W[:, None] if planes is None else of_roles_2W.index_select(0, planes.roles)

        key = cross.key(level) + (places + of_tokens(keys_2W))
        roles = of_tokens(values_2W)
        with made_again(roles, lambda: of_tokens(values_2W)):
            value = found * roles
        with made_again(value, lambda: found * of_tokens(values_2W)):
            at = None if planes is None else planes.pairs
            x_BQW = cross(x_BQW, key, value, places_QW, at)
        return self.norm(x_BQW + self.dropout(self.contract(F.gelu(self.expand(x_BQW)))))


class DeltaModule(nn.Module):
    """Delta tokens for pairs of images.

    The tokens start spread over the image: each attends to its own cell in both images and, in half of the channels,
    starts with the difference. Training changes all of this.

    Cost of a pair: `layers · (2·2N·V·W + 2·Q·2N·W + O(Q·W²))` multiply-adds; the keys and values of the 2N image
    tokens dominate, the learned queries are few. Kept for the backward pass: `2N · (layers · 2W + levels · V)` numbers.
    """

    def __init__(self, config: DeltaConfig, vision_width: int, levels: int, patches: int | None = None) -> None:
        """At first, the delta tokens divide the `patches` image tokens of a view among themselves; by default one each."""
        super().__init__()
        self.heads = config.heads
        self.tokens = nn.Parameter(torch.empty(config.tokens, config.width))
        self.places = nn.Parameter(torch.empty(config.tokens, config.width))
        self.level_norms = nn.ModuleList(nn.LayerNorm(vision_width) for _ in range(levels))
        self.layers = nn.ModuleList(DeltaLayer(config, vision_width) for _ in range(config.layers))
        self.level_of_layer = [index * levels // config.layers for index in range(config.layers)]
        self.apply(_initialise)
        nn.init.normal_(self.tokens)
        with torch.no_grad():
            self.places.copy_(cell_places(config.tokens, patches or config.tokens, config.width, config.heads))

    def forward(self, levels: list[Tensor], pairs: int, planes: Planes | None = None) -> Tensor:
        """`[B, Q, W]` delta tokens from the tower's levels, each `[P, N, V]`, for the first 2 · `pairs` of the images;
        with `planes` from the tokens of all pairs, `[T, V]`.

        Other images cost nothing.
        """
        if planes is None:
            levels = [level[: 2 * pairs].unflatten(0, (pairs, 2)) for level in levels]
        normed = [norm(level) for norm, level in zip(self.level_norms, levels, strict=True)]
        return self.look(normed, key_places(normed[0], self.tokens.shape[1], self.heads, planes), pairs, planes)

    def look(self, normed: list[Tensor], places: Tensor, pairs: int, planes: Planes | None = None) -> Tensor:
        """`[B, Q, W]`: the layers over normalised levels, each `[B, 2, N, V]` with `places` `[N, W]`; with `planes` `[T, V]`
        and `[T, W]`."""
        x_BQW = self.tokens.expand(pairs, -1, -1)
        for layer, level in zip(self.layers, self.level_of_layer, strict=True):
            x_BQW = layer(x_BQW, normed[level], self.places, places, planes)
        return x_BQW


def build_delta(config: DeltaConfig, vision_width: int, levels: int, patches: int) -> DeltaModule:
    """The delta module of the configured kind. Raises UserError if its class is not a `DeltaModule`."""
    kind = DELTA_MODULES.load(config.kind)
    if not (isinstance(kind, type) and issubclass(kind, DeltaModule)):
        raise UserError(f"model.delta.kind: {config.kind} is not a subclass of onediff.model.delta.DeltaModule")
    return kind(config, vision_width, levels, patches)


def cell_places(tokens: int, patches: int, width: int, heads: int) -> Tensor:
    """`[tokens, width]` queries that start with equal attention to every patch of a token's cell and hardly any to others.

    A token's cell holds the patches to which no other token is nearer or, if there are none, its nearest patch. The place
    embedding of a token's centre would attend to only one or two patches: 64 tokens would see 11 % of 24 x 24, and a
    softmax passes no gradient to what it does not see. Each query is the shortest whose product with every key of its cell
    equals that of an embedding with itself; if every cell is one patch, it is that patch's embedding.
    """
    with torch.device("cpu"):  # also while the module is built without memory
        centres = torch.tensor(spread(tokens), dtype=torch.float64)
        points = torch.tensor(spread(patches), dtype=torch.float64)
        if tokens == patches:
            return place_embedding(centres.float(), width, heads)
        distances = torch.cdist(centres, points)
        is_nearest = (distances <= distances.amin(0) + SAME) | (distances <= distances.amin(1, keepdim=True) + SAME)
        keys = place_embedding(points, width, heads)
        peak = keys[0].square().sum()
        queries = []
        for cell in is_nearest:
            inside = keys[cell]
            products = inside @ inside.T + RIDGE * peak * torch.eye(len(inside), dtype=torch.float64)
            queries.append(inside.T @ torch.linalg.solve(products, peak.expand(len(inside))))
        return torch.stack(queries).float()


def key_places(level: Tensor, width: int, heads: int, planes: Planes | None) -> Tensor:
    """The place embeddings of a level's tokens: `[N, W]` for `[…, N, V]`, with `planes` `[T, W]`."""
    if planes is None:
        return even_places(level.shape[-2], width, heads, level.device, level.dtype)
    boxes = planes.boxes[: len(level)]
    return place_embedding((boxes[:, :2] + boxes[:, 2:]) / 2, width, heads).to(level)


@lru_cache
def even_places(points: int, width: int, heads: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`[points, width]`: the place embeddings of `spread`. Cached, because copying from the host waits for the device."""
    with torch.inference_mode(False):  # cached values are used in training too
        return place_embedding(torch.tensor(spread(points), device=device), width, heads).to(dtype)


@lru_cache
def spread(points: int) -> tuple[tuple[float, float], ...]:
    """`points` places (x, y) in the unit square in reading order, spread evenly over rows; a square number gives a grid."""
    rows = max(1, math.isqrt(points))
    made = []
    for row in range(rows):
        columns = (row + 1) * points // rows - row * points // rows
        made += [((column + 0.5) / columns, (row + 0.5) / rows) for column in range(columns)]
    return tuple(made)


def place_embedding(points: Tensor, width: int, heads: int) -> Tensor:
    """`[points, width]` of places `[points, 2]`, the same in every head: sines and cosines of x and y whose product peaks at
    equal places.

    For head size d the product of two embeddings falls to half at a distance of about 2/d of the image's side.
    """
    size = width // heads
    waves = max(1, size // 4)
    angles = points[:, :, None] * torch.arange(1, waves + 1, device=points.device) * math.pi
    head = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
    head = F.pad(head, (0, max(0, size - head.shape[1])))[:, :size]
    return PEAK * head.repeat(1, heads)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        # BERT's 0.02 at its width of 768; the same gain at others.
        nn.init.normal_(module.weight, std=0.02 * math.sqrt(768 / module.in_features))
        nn.init.zeros_(module.bias)
    if isinstance(module, DeltaLayer):
        nn.init.normal_(module.role_keys, std=0.02)
        nn.init.ones_(module.role_values)
        with torch.no_grad():
            module.role_values[1, ::2] = -1.0

"""Attention maps: the cross-attention weights of the delta module, computed without modifying it.

Shape letters: B pairs, P images, N tokens of an image, T tokens of all pairs, Q delta tokens, W module width, H heads,
D head size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from onediff.config.model import ImageConfig
from onediff.data.batch import Batch
from onediff.data.geometry import over_image
from onediff.data.planes import Planes
from onediff.model.delta import DeltaModule, key_places
from onediff.model.onediff import OneDiffModel
from onediff.model.vision import side_tokens

RASTER = 32
"""Side of the attention map of an image with `fit: tiles` or `fit: native`."""


@torch.no_grad()
def attention_maps(model: OneDiffModel, batch: Batch) -> Tensor:
    """`[B, 2, side, side]`: the share of attention on each cell of the before and after images.

    The mean over layers, heads and delta tokens; it sums to 1 over a pair. Cells divide the tower's input, or the whole
    image with `fit: tiles` and `fit: native`. Costs another forward pass of the tower and the delta module.
    """
    planes, pairs = batch.planes, batch.pairs
    _, levels = model.vision(batch.images, planes)
    if planes is None:
        weights = cross_attention_weights(model.delta, levels, pairs)
        mean_B2N = torch.stack([layer.mean(dim=(1, 2)) for layer in weights]).mean(0)
        side = side_tokens(mean_B2N.shape[-1])
        return mean_B2N.unflatten(-1, (side, side))
    weights = cross_attention_weights(model.delta, planes.of_pairs(levels), pairs, planes)
    mean_T = torch.stack([layer.mean(dim=(0, 1)) for layer in weights]).mean(0)
    return _rasters(mean_T, planes).unflatten(0, (pairs, 2))


def _rasters(weight_T: Tensor, planes: Planes) -> Tensor:
    """`[images, RASTER, RASTER]`: each token's weight, spread evenly over the part of the image that it saw."""
    edges = torch.linspace(0, 1, RASTER + 1, device=weight_T.device)
    boxes = planes.boxes[: len(weight_T)]

    def covered(low_T: Tensor, high_T: Tensor) -> Tensor:
        """`[T, RASTER]`: the share of a token's extent in each cell."""
        inside = torch.minimum(high_T[:, None], edges[1:]) - torch.maximum(low_T[:, None], edges[:-1])
        return inside.clamp(min=0) / (high_T - low_T)[:, None]

    across, down = covered(boxes[:, 0], boxes[:, 2]), covered(boxes[:, 1], boxes[:, 3]) * weight_T[:, None]
    lengths = planes.lengths[: 2 * len(planes.pairs.lengths)]
    return torch.stack([y.T @ x for x, y in zip(across.split(lengths), down.split(lengths), strict=True)])


@torch.no_grad()
def cross_attention_weights(
    delta: DeltaModule, levels: list[Tensor], pairs: int, planes: Planes | None = None
) -> list[Tensor]:
    """The cross-attention weights of each layer in fp32, `[B, H, Q, 2, N]`, or `[H, Q, T]` with `planes`.

    The fused attention never materialises its weights. This recomputes them from the projected queries and keys, which
    forward hooks capture while the module runs.
    """
    layers: list[Any] = list(delta.layers)
    heard: list[dict[str, Tensor]] = [{} for _ in layers]
    hooks = []
    for number, layer in enumerate(layers):
        for name in ("query", "key"):

            def listen(
                _: Any, __: Any, made: Tensor, number: int = number, name: str = name, layer: Any = layer
            ) -> None:
                # Under ZeRO-3, parameters are gathered only while their module runs.
                heard[number] |= {name: made, "places": delta.places + 0, "role_keys": layer.role_keys + 0}

            hooks.append(getattr(layer.cross_attention, name).register_forward_hook(listen))
    try:
        delta(levels, pairs, planes)
    finally:
        for hook in hooks:
            hook.remove()
    width = heard[0]["query"].shape[-1]
    places = key_places(levels[0], width, delta.heads, planes)
    found = []
    for projected in heard:
        roles = projected["role_keys"]
        roles = roles[:, None] if planes is None else roles.index_select(0, planes.roles)
        query_BQW = (projected["query"] + projected["places"]).float()
        key = (projected["key"] + places + roles).float()
        if planes is None:
            weights = _weights(query_BQW, key.flatten(1, 2), delta.heads)
            found.append(weights.unflatten(-1, (2, levels[0].shape[1])))
        else:
            of_pairs = zip(query_BQW, key.split(planes.pairs.lengths), strict=True)
            found.append(torch.cat([_weights(query[None], one[None], delta.heads)[0] for query, one in of_pairs], -1))
    return found


def _weights(query_BQW: Tensor, key_BKW: Tensor, heads: int) -> Tensor:
    """`[B, H, Q, K]`."""
    q = query_BQW.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H, Q, D]
    k = key_BKW.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)  # [B, H, D, K]
    return (q @ k / q.shape[-1] ** 0.5).softmax(-1)


def drawn_over(image: np.ndarray, attention: np.ndarray, config: ImageConfig) -> np.ndarray:
    """Draws the map `attention`, `[side, side]`, in red over the grey image, `[height, width, 3]` uint8.

    Parts that the model did not see are faded. A cell with its even share stays grey, and three times the even share is
    full red, so maps of different steps are comparable.
    """
    even = 0.5 / attention.size  # the maps of both images add up to 1
    above = np.clip((attention / even - 1) / 2, 0, 1).astype(np.float32)
    red, was_seen = (part[..., None] for part in over_image(above, image.shape[1::-1], config))
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    drawn = np.where(was_seen, (1 - 0.7 * red) * grey + 0.7 * red * np.array([255, 30, 0]), 0.2 * grey + 0.8 * 200)
    return drawn.astype(np.uint8)

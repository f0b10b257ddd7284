"""Where the delta module looks: its cross-attention weights, computed beside it and without touching it.

Shape letters: B pairs, P pictures, N tokens of a picture, Q delta tokens, W module width, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from onediff.data.geometry import over_picture
from onediff.model.config import PictureConfig
from onediff.model.delta import DeltaModule, place_embedding, spread
from onediff.model.onediff import OneDiffModel
from onediff.model.vision import side_tokens


@torch.no_grad()
def heat_maps(model: OneDiffModel, pictures: Tensor, pairs: int) -> Tensor:
    """`[B, 2, side, side]`: the share of attention that each place of before and after gets, over all delta tokens.

    The mean over layers, heads and tokens; it sums to 1 over a pair. `pictures` are `[P, 3, size, size]` uint8; 2b and
    2b + 1 are before and after of pair b. Costs the tower and the delta module once more, without the language model.
    """
    _, levels = model.vision(pictures)
    weights = cross_attention_weights(model.delta, levels, pairs)
    mean_B2N = torch.stack([layer.mean(dim=(1, 2)) for layer in weights]).mean(0)
    side = side_tokens(mean_B2N.shape[-1])
    return mean_B2N.unflatten(-1, (side, side))


@torch.no_grad()
def cross_attention_weights(delta: DeltaModule, levels_PNV: list[Tensor], pairs: int) -> list[Tensor]:
    """Of each layer the weights `[B, H, Q, 2, N]` with which delta tokens look at before and after, fp32.

    The attention itself runs fused and never holds its weights; here they come from the same projected queries and
    keys, which are listened to while the module runs.
    """
    layers: list[Any] = list(delta.layers)
    heard: list[dict[str, Tensor]] = [{} for _ in layers]
    hooks = []
    for number, layer in enumerate(layers):
        for name in ("query", "key"):

            def listen(
                _: Any, __: Any, made: Tensor, number: int = number, name: str = name, layer: Any = layer
            ) -> None:
                # Under ZeRO-3 parameters are whole only while the module that owns them runs.
                heard[number] |= {name: made, "places": delta.places + 0, "role_keys": layer.role_keys + 0}

            hooks.append(getattr(layer.cross_attention, name).register_forward_hook(listen))
    try:
        delta(levels_PNV, pairs)
    finally:
        for hook in hooks:
            hook.remove()
    tokens, width = levels_PNV[0].shape[1], heard[0]["query"].shape[-1]
    places_NW = place_embedding(spread(tokens), width, delta.heads).to(levels_PNV[0])
    found = []
    for projected in heard:
        query_BQW = projected["query"] + projected["places"]
        key_B2NW = projected["key"] + places_NW + projected["role_keys"][:, None]
        q = query_BQW.float().unflatten(-1, (delta.heads, -1)).transpose(1, 2)  # [B, H, Q, D]
        k = key_B2NW.float().flatten(1, 2).unflatten(-1, (delta.heads, -1)).permute(0, 2, 3, 1)  # [B, H, D, 2N]
        found.append((q @ k / q.shape[-1] ** 0.5).softmax(-1).unflatten(-1, (2, tokens)))
    return found


def drawn_over(picture: np.ndarray, heat: np.ndarray, config: PictureConfig) -> np.ndarray:
    """`picture`, `[height, width, 3]` uint8, in grey with the map `heat`, `[side, side]`, in red; paled where the model
    did not see it.

    The even share of a place stays grey, and three times as much is full red: maps of all steps can be compared.
    """
    even = 0.5 / heat.size  # the maps of both pictures add up to 1
    above = np.clip((heat / even - 1) / 2, 0, 1).astype(np.float32)
    red, was_seen = (part[..., None] for part in over_picture(above, picture.shape[1::-1], config))
    grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2)
    drawn = np.where(was_seen, (1 - 0.7 * red) * grey + 0.7 * red * np.array([255, 30, 0]), 0.2 * grey + 0.8 * 200)
    return drawn.astype(np.uint8)

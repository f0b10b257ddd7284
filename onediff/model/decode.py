"""Greedy decoding with a key/value cache that is laid out once.

The layers are the language model's own modules, whole or cut over a tensor group; only what stands between them is
written out here, for the family of models that differ in nothing else (`FAMILIES`). Others are left to Hugging Face
`generate`, as are beams and sampling.

Shape letters: B rows, T new tokens, L tokens so far, W width, H query heads, K key/value heads, G = H / K, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose blocks are norm, attention, norm, gated feed-forward."""
KNOWN = frozenset({"eos_token_id", "pad_token_id", "do_sample", "num_beams", "synced"})
"""Options that greedy decoding understands."""


def can_decode(language: Any, length: int, options: dict[str, Any]) -> bool:
    """Whether `greedy` gives what Hugging Face `generate` would, for sequences of `length` tokens, prompt included."""
    config = language.config
    window = getattr(config, "sliding_window", None)
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILIES
        and (window is None or length <= window)
        and rope.get("rope_type", "default") in ("default", "linear", "llama3")
        and options.keys() <= KNOWN
        and not options.get("do_sample")
        and options.get("num_beams", 1) == 1
    )


@dataclass
class Slab:
    """Keys and values of one layer, `[B, K, room, D]`, filled from the left."""

    keys: Tensor
    values: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


class Decoder:
    """One batch on its way through a language model.

    Cost of a token: one pass over the weights and over the cache so far; nothing is copied, grown or built anew.
    """

    def __init__(self, language: Any, room: int, seen_BL: Tensor, dtype: torch.dtype) -> None:
        """`room` tokens a row at most; `seen_BL` is False where the prompt is padded, on its left."""
        base = language.base_model
        self.head, self.words = language.get_output_embeddings(), language.get_input_embeddings()
        self.layers, self.norm = base.layers, base.norm
        self.length = 0
        self.room = room
        self.slabs: list[Slab] = []
        places_L = torch.arange(room, device=seen_BL.device)
        padding_B = (~seen_BL).sum(1)
        self.padded = bool(padding_B.any())
        places_BL = (places_L - padding_B[:, None]).clamp(min=0) if self.padded else places_L[None]
        # Of some kinds of positions the tables hold a scale as well, so they come from the model.
        table = torch.empty(0, dtype=dtype, device=seen_BL.device)
        self.cos, self.sin = (t[:, None] for t in base.rotary_emb(table, position_ids=places_BL))  # [B or 1, 1, L, D]
        self.seen = F.pad(seen_BL, (0, room - seen_BL.shape[1]), value=True)[:, None, None] if self.padded else None

    def __call__(self, x_BTW: Tensor) -> Tensor:
        """`[B, vocabulary]`: what comes behind the last of these tokens."""
        start, self.length = self.length, self.length + x_BTW.shape[1]
        assert self.length <= self.room
        for number, layer in enumerate(self.layers):
            # Of the last layer nothing but its newest place is read.
            asked = slice(-1 if number + 1 == len(self.layers) else 0, None)
            h_BTW = _normed(layer.input_layernorm, x_BTW)
            x_BTW = x_BTW[:, asked] + self._attended(layer.self_attn, h_BTW, number, start, asked)
            h_BTW, mlp = _normed(layer.post_attention_layernorm, x_BTW), layer.mlp
            x_BTW = x_BTW + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h_BTW)) * mlp.up_proj(h_BTW))
        return self.head(_normed(self.norm, x_BTW))[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only."""
        for slab in self.slabs:
            slab.keep(rows)
        if self.padded and self.seen is not None:
            self.seen, self.cos, self.sin = self.seen[rows], self.cos[rows], self.sin[rows]

    def _attended(self, attention: Any, h_BTW: Tensor, number: int, start: int, asked: slice) -> Tensor:
        """What the `asked` of these places see of all so far."""
        size, end = attention.head_dim, self.length
        q = attention.q_proj(h_BTW[:, asked]).unflatten(-1, (-1, size))
        k, v = (layer(h_BTW).unflatten(-1, (-1, size)) for layer in (attention.k_proj, attention.v_proj))
        if hasattr(attention, "q_norm"):
            q, k = _normed(attention.q_norm, q), _normed(attention.k_norm, k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, heads, T, D]
        cos, sin = self.cos[:, :, start:end], self.sin[:, :, start:end]
        q, k = _turned(q, cos[:, :, asked], sin[:, :, asked]), _turned(k, cos, sin)
        if number == len(self.slabs):
            shape = (*k.shape[:2], self.room, size)
            self.slabs.append(Slab(k.new_empty(shape), v.new_empty(shape)))
        slab = self.slabs[number]
        slab.keys[:, :, start:end], slab.values[:, :, start:end] = k, v
        keys, values = slab.keys[:, :, :end], slab.values[:, :, :end]
        seen = None if self.seen is None else self.seen[..., :end]
        if q.shape[2] == 1:
            # The G heads that share keys are queries of one attention: no key is repeated.
            q_BKGD = q.squeeze(2).unflatten(1, (k.shape[1], -1))
            mixed = F.scaled_dot_product_attention(q_BKGD, keys, values, attn_mask=seen, scale=attention.scaling)
            return attention.o_proj(mixed.flatten(1)[:, None])
        causal = None if seen is None else seen & torch.ones(end, end, dtype=torch.bool, device=q.device).tril()
        mixed = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=causal, is_causal=causal is None, scale=attention.scaling, enable_gqa=True
        )
        return attention.o_proj(mixed.transpose(1, 2).flatten(2))


def greedy(
    language: Any,
    embeds_BTW: Tensor,
    seen_BT: Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
    synced: Callable[[bool], bool] | None = None,
    **greedily: Any,
) -> Tensor:
    """`[B, at most max_new_tokens]` token ids that continue left-padded prompts, padded behind each row's end.

    A row that has ended is computed no longer once half of the rows have. `synced(going)` says whether any rank goes
    on: ranks that share the weights of a step (ZeRO-3) must all take it. `greedily` holds what `can_decode` has looked
    at: no beams, no sampling.
    """
    rows, prompt, _ = embeds_BTW.shape
    made = torch.full((rows, max_new_tokens), pad_token_id, device=embeds_BTW.device)
    decoder = Decoder(language, prompt + max_new_tokens, seen_BT, embeds_BTW.dtype)
    here = torch.arange(rows, device=made.device)  # which rows are computed still
    x, going = embeds_BTW, torch.ones(rows, dtype=torch.bool, device=made.device)
    # Asking a GPU whether all rows have ended makes it wait.
    ask_every = 1 if made.device.type == "cpu" else 8
    taken = 0
    for step in range(max_new_tokens):
        token = torch.where(going, decoder(x).argmax(-1), pad_token_id)
        made[here, step] = token
        taken = step + 1
        if eos_token_id is not None:
            going = going & (token != eos_token_id)
        if taken % ask_every == 0:
            left = int(going.sum())
            if not (synced(left > 0) if synced else left):
                break
            if synced is None and left <= len(here) // 2:
                kept = going.nonzero().flatten()
                decoder.keep(kept)
                here, going, token = here[kept], going[kept], token[kept]
        x = decoder.words(token[:, None])
    return made[:, :taken]


def _normed(norm: Any, x: Tensor) -> Tensor:
    """RMS norm in one call; in half precision as the model's own module rounds it, and under ZeRO-3 where it gathers."""
    if x.dtype != torch.float32 or hasattr(norm.weight, "ds_id"):
        return norm(x)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: `[B, heads, T, D]` by `[B or 1, 1, T, D]`."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin

"""Registers our attention in transformers as `onediff`, for the tower and the language model."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from onediff.data.segments import Segments
from onediff.model.attention import attention
from onediff.model.lean import transformers
from onediff.parallel.context import ContextSplit

NAME = "onediff"

OWN_WAYS = ("softcap", "s_aux", "position_bias")
"""Options of some models that our function does not support; those models then use their own function."""

BY_MASK = ("axk2", "deepseek_v32", "doge", "glm_moe_dsa", "hy_v4", "llama4_text", "nemotron", "phimoe")
"""Model types that attend in their own way, or express their window only in the mask, although they claim to support
transformers' attention interface."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers: `[rows, heads, tokens, size]` to `[rows, tokens, heads, size]`.

    `segments`, passed to the model's `forward`, gives the sequences in the concatenated rows; the mask is then ignored.
    Without it, attention covers whole rows, or follows the mask when generating with a cache or with padding.
    """
    rows, _, tokens, _ = query.shape
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if any(kwargs.get(name) is not None for name in OWN_WAYS):
        if segments is None and attention_mask is None and key.shape[2] == tokens:
            segments = Segments.even(rows, tokens, query.device)
        if segments is not None:
            attention_mask = segments_mask(segments, rows, tokens, query.dtype, causal, sliding_window)
        return own_eager(module)(
            module,
            query,
            key,
            value,
            None if attention_mask is None else added(attention_mask, query.dtype),
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    if segments is None and (attention_mask is not None or key.shape[2] != tokens):
        return transformers.integrations.sdpa_attention.sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if segments is None:
        segments = Segments.even(rows, tokens, query.device)
    at, longest, lengths = segments.cu_seqlens, segments.longest, segments.lengths
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    mixed = attention(
        q,
        k,
        v,
        at,
        at,
        longest,
        longest,
        dropout,
        scaling,
        causal,
        (-1, -1) if sliding_window is None or sliding_window >= longest else (sliding_window - 1,) * 2,
        lengths_q=lengths,
        lengths_k=lengths,
    )
    return mixed.unflatten(0, (rows, tokens)), None


def attend_in_context(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    context: ContextSplit | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`attend`, or with `context`, attention of this rank's tokens, `[1, heads, share, size]`, over all tokens."""
    if context is None:
        return attend(module, query, key, value, attention_mask, **options)
    query, key, value = context.heads(query, key, value)
    mixed, _ = attend(module, query, key, value, attention_mask, **options)
    return context.tokens_of_all_heads(mixed), None


def segments_mask(
    segments: Segments, rows: int, tokens: int, dtype: torch.dtype, causal: bool = True, window: int | None = None
) -> Tensor:
    """An additive mask `[rows, 1, tokens, tokens]` that confines attention to each segment, and to a window if given."""
    device = segments.cu_seqlens.device
    place = torch.arange(rows * tokens, device=device).view(rows, tokens)
    segment = torch.bucketize(place, segments.cu_seqlens[1:].long(), right=True)
    behind = place[:, :, None] - place[:, None, :]
    allowed = segment[:, :, None] == segment[:, None, :]
    if causal:
        allowed &= behind >= 0
    if window is not None:
        allowed &= behind.abs() < window
    return added(allowed[:, None], dtype)


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts a boolean mask (True is visible) to an additive one; returns a numeric mask unchanged."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def own_eager(module: Any) -> Any:
    """The eager attention function in the file that defines the module's class."""
    return sys.modules[type(module).__module__].eager_attention_forward


def no_mask(like: Tensor) -> Tensor:
    """An empty `attention_mask` to pass with `segments`.

    transformers uses a mask of four dimensions as it is. Given None, it would search for packed rows, which synchronises
    with the device, and build the whole mask.
    """
    return like.new_empty(1, 1, 1, 0)


def implementation(auto: Any, architecture: Any) -> str | None:
    """`attn_implementation` for a model built by `auto` (`AutoModel`, …).

    Ours if the model uses transformers' attention interface, else None for transformers' choice.
    """
    kind = auto._model_mapping.get(type(architecture), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    if architecture.model_type in BY_MASK:
        return None
    return NAME if getattr(kind, "_supports_attention_backend", False) else None


transformers.AttentionInterface.register(NAME, attend_in_context)
transformers.AttentionMaskInterface.register(NAME, transformers.masking_utils.sdpa_mask)

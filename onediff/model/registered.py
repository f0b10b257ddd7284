"""Our attention under the name `onediff` among transformers' own, so that tower and language model run on it too."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from onediff.data.segments import Segments
from onediff.errors import UserError
from onediff.model.attention import attention

NAME = "onediff"

UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models change about attention that this function does not compute."""


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
    """`[rows, heads, tokens, size]` to `[rows, tokens, heads, size]`, as transformers' attention functions do.

    `segments` is what a caller passes to the model's `forward`: the sequences in the rows laid end to end; then no mask
    is read. Without it, whole rows attend, or, in generation over a cache or with padding, what the mask allows.
    """
    strange = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if strange:
        raise UserError(f"model: {type(module).__name__} attends with {strange[0]!r}, which is not supported here")
    rows, _, tokens, _ = query.shape
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if segments is None and (attention_mask is not None or key.shape[2] != tokens):
        return sdpa_attention_forward(
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


def no_mask(like: Tensor) -> Tensor:
    """What goes to a model's `attention_mask` beside `segments`: a mask of four dimensions, which transformers takes as
    made already; with None it would look for packed rows itself, which waits for the device, and make the whole mask.
    """
    return like.new_empty(1, 1, 1, 0)


def implementation(auto: Any, architecture: Any) -> str | None:
    """What `attn_implementation` is for a model that `auto` (`AutoModel`, …) builds: ours, where it asks transformers'
    interface for its attention, else transformers' choice.
    """
    kind = auto._model_mapping.get(type(architecture), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    return NAME if getattr(kind, "_supports_attention_backend", False) else None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)

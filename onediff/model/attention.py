"""One attention function for tower, delta module and language model, over the fastest kernel that the machine has.

Sequences lie end to end, as flash-attn's `flash_attn_varlen_func` takes them: nothing is padded, and no mask of
queries × keys is ever made for what training computes. Shape letters: T tokens of all sequences (Tq queries, Tk keys),
S sequences, H heads, G key/value heads (H is a multiple of G), D head size.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onediff.errors import UserError

log = logging.getLogger(__name__)

ACCELERATOR = "cuda"
"""Where the flash kernels run; everything else is torch's own."""
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Kernel:
    """A library's kernel for packed sequences."""

    module: str
    function: str
    package: str
    """What a person installs."""
    capabilities: tuple[int, ...]
    """Major compute capabilities that it is built for, forward and backward."""
    call: Callable[..., Any]
    """Calls the function with our arguments."""
    largest_head: int
    dropout: bool = False
    needs: tuple[str, ...] = ()
    """Parameters that the function must have."""


def _flash_attn_2(run: Any, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: _Options) -> Any:
    return run(q, k, v, *at, options.dropout_p, options.scale, options.causal, window_size=options.window_size)


def _flash_attn_3(run: Any, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: _Options) -> Any:
    return run(q, k, v, *at, softmax_scale=options.scale, causal=options.causal, window_size=options.window_size)


def _flash_attn_4(run: Any, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: _Options) -> Any:
    # The places are keywords: its fourth positional argument is another one. Infinite is None there, not -1.
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k = at
    left, right = (None if side < 0 else side for side in options.window_size)
    return run(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        softmax_scale=options.scale,
        causal=options.causal,
        window_size=(left, right),
    )


def _torch_varlen(run: Any, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: _Options) -> Any:
    left, right = options.window_size
    window = (left, 0) if options.causal else (left, right)
    grouped = q.shape[1] != k.shape[1]
    return run(q, k, v, *at, scale=options.scale, window_size=window, enable_gqa=grouped)


KERNELS = {
    "flash_attn_3": Kernel(
        "flash_attn_interface", "flash_attn_varlen_func", "flash-attn 3 (from source)", (9,), _flash_attn_3, 256
    ),
    "flash_attn_4": Kernel(
        "flash_attn.cute", "flash_attn_varlen_func", "flash-attn-4", (9, 10, 11, 12), _flash_attn_4, 128
    ),
    "flash_attn_2": Kernel(
        "flash_attn", "flash_attn_varlen_func", "flash-attn", (8, 9, 10, 12), _flash_attn_2, 256, dropout=True
    ),
    "torch_varlen": Kernel(
        "torch.nn.attention.varlen",
        "varlen_attn",
        "a later torch",
        (8, 9, 10, 12),
        _torch_varlen,
        256,
        needs=("scale", "window_size", "enable_gqa"),
    ),
}
"""Fastest first, where several are to be had."""

BACKENDS = (*KERNELS, "sdpa", "reference")


@dataclass(frozen=True)
class _Options:
    dropout_p: float
    scale: float
    causal: bool
    window_size: tuple[int, int]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    *,
    lengths_q: Sequence[int] | None = None,
    lengths_k: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention inside each of S sequences; `flash_attn_varlen_func` of flash-attn 2.8, with two additions.

    Args:
        q: `[Tq, H, D]`; k, v: `[Tk, G, D]`.
        cu_seqlens_q, cu_seqlens_k: `[S + 1]` int32, where each sequence starts and the last one ends.
        max_seqlen_q, max_seqlen_k: the longest sequence, or any bound on it.
        dropout_p: share of the attention weights dropped.
        softmax_scale: factor of the products; the default is D ** -0.5.
        causal: query i of n sees the keys up to i + (keys - n): aligned at the end. A query that sees no key gives 0.
        window_size: keys to the left and right that a query sees; -1 is no bound.
        lengths_q, lengths_k: the lengths of the sequences on the host, for backends that work sequence by sequence;
            without them such a backend asks the device for `cu_seqlens`, which waits for it.
        backend: one of `BACKENDS`, instead of the one in use.

    Returns:
        `[Tq, H, D]`. What a flash kernel cannot take (fp32, the CPU, an odd head size) goes to torch's SDPA.

    Memory grows with Tq + Tk on every backend but `reference` (and `sdpa` with a window, or causal with more keys than
    queries: queries × keys of one sequence). Cost 4 · Σ queries · keys · H · D flops forward, half of it if causal.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    options = _Options(dropout_p, scale, causal, window_size)
    name = backend or in_use()
    if name in KERNELS and _takes(KERNELS[name], q, dropout_p) and q.numel() and k.numel():
        at = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        made = KERNELS[name].call(_function(name), q, k, v, at, options)
        return made[0] if isinstance(made, tuple) else made
    lengths_q = cu_seqlens_q.diff().tolist() if lengths_q is None else lengths_q
    lengths_k = cu_seqlens_k.diff().tolist() if lengths_k is None else lengths_k
    assert sum(lengths_q) == len(q) and sum(lengths_k) == len(k) and len(lengths_q) == len(lengths_k)
    one = _reference if name == "reference" else _sdpa
    if len(set(lengths_q)) == len(set(lengths_k)) == 1:
        q, k, v = (t.unflatten(0, (len(lengths_q), -1)) for t in (q, k, v))
        return one(q, k, v, options).flatten(0, 1)
    parts = zip(q.split(list(lengths_q)), k.split(list(lengths_k)), v.split(list(lengths_k)), strict=True)
    return torch.cat([one(q_one[None], k_one[None], v_one[None], options)[0] for q_one, k_one, v_one in parts])


def _takes(kernel: Kernel, q: Tensor, dropout_p: float) -> bool:
    size = q.shape[-1]
    return (
        q.device.type == ACCELERATOR
        and q.dtype in HALF
        and size % 8 == 0
        and size <= kernel.largest_head
        and (kernel.dropout or not dropout_p)
    )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, options: _Options) -> Tensor:
    """`[S, tokens, H, D]` for sequences of one length, by the kernel that torch chooses."""
    queries, keys = q.shape[1], k.shape[1]
    if options.causal and queries > keys:
        # The first queries see nothing.
        rest = _sdpa(q[:, queries - keys :], k, v, options) if keys else q[:, queries:]
        return torch.cat([q[:, : queries - keys] * 0, rest], 1)
    if not queries or not keys:
        return q * 0
    plainly_causal = options.causal and queries == keys and options.window_size[0] < 0
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if plainly_causal else _allowed(queries, keys, options, q.device),
        dropout_p=options.dropout_p,
        is_causal=plainly_causal,
        scale=options.scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2)


def _reference(q: Tensor, k: Tensor, v: Tensor, options: _Options) -> Tensor:
    """`[S, tokens, H, D]` in the plainest way; half precision is computed in fp32."""
    if q.dtype in HALF:
        return _reference(q.float(), k.float(), v.float(), options).to(q.dtype)
    groups = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(groups, 2) for t in (k, v))
    scores = torch.einsum("sqhd,skhd->shqk", q, k) * options.scale
    allowed = _allowed(q.shape[1], k.shape[1], options, q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
        seen = allowed.any(-1, keepdim=True)
        scores = scores.masked_fill(~seen, 0.0)
        weights = scores.softmax(-1) * seen
    else:
        weights = scores.softmax(-1)
    return torch.einsum("shqk,skhd->sqhd", F.dropout(weights, options.dropout_p), v)


def _allowed(queries: int, keys: int, options: _Options, device: torch.device) -> Tensor | None:
    """`[queries, keys]` bool: which keys a query sees; None if all."""
    left, right = options.window_size
    right = 0 if options.causal else right
    if (right < 0 or (right == 0 and queries == 1)) and left < 0:
        return None
    offset = keys - queries
    ahead = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] - offset
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if right >= 0:
        allowed &= ahead <= right
    if left >= 0:
        allowed &= ahead >= -left
    return allowed


_in_use: str | None = None


def in_use() -> str:
    """The backend of this process: what `use` set, else what `use("auto")` chooses."""
    return _in_use or use("auto")


def use(wanted: str = "auto") -> str:
    """Chooses the backend of this process, says so in the log, and returns its name.

    `auto` takes the first of `BACKENDS` that is installed and built for the accelerator of this process. Raises
    UserError when another one is asked for by name and cannot run here.
    """
    global _in_use
    if wanted == "auto":
        chosen = next(name for name in BACKENDS if missing(name) is None)
    else:
        reason = missing(wanted)
        if reason is not None:
            raise UserError(f"training.attention: {wanted} cannot run here: {reason}; use auto")
        chosen = wanted
    if chosen != _in_use:
        log.info("attention runs on %s", chosen)
    _in_use = chosen
    return chosen


def missing(name: str) -> str | None:
    """Why a backend cannot run in this process; None where it can."""
    kernel = KERNELS.get(name)
    if kernel is None:
        return None
    major = capability()
    if major is None:
        return "there is no CUDA device"
    if major not in kernel.capabilities:
        return f"it is not built for devices of compute capability {major}.x"
    if _function(name) is None:
        return f"{kernel.module} cannot be imported; install {kernel.package}"
    return None


def capability() -> int | None:
    """Major compute capability of this process's CUDA device; None without one."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else None


@cache
def _function(name: str) -> Any:
    kernel = KERNELS[name]
    try:
        found = getattr(importlib.import_module(kernel.module), kernel.function)
    except (ImportError, AttributeError, OSError) as error:
        # A build for another CUDA or torch fails in many ways; none of them may stop a run that can do without.
        if not isinstance(error, ModuleNotFoundError):
            log.warning("%s is installed but cannot be used: %s", kernel.module, " ".join(str(error).split()))
        return None
    known = inspect.signature(found).parameters
    return found if all(parameter in known for parameter in kernel.needs) else None

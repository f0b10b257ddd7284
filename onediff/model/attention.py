"""One attention function for the tower, the delta module and the language model, on the fastest available kernel.

Sequences are concatenated as for flash-attn's `flash_attn_varlen_func`: there is no padding, and training never builds a
mask of queries × keys. Shape letters: T tokens of all sequences (Tq queries, Tk keys), S sequences, H heads, G key/value
heads (H is a multiple of G), D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from onediff.errors import UserError
from onediff.model.kernels import HALF, KERNELS, Options, missing, run, takes

log = logging.getLogger(__name__)

BACKENDS = (*KERNELS, "sdpa", "reference")


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
    """Softmax attention within each of S sequences; `flash_attn_varlen_func` of flash-attn 2.8, with two additions.

    Args:
        q: `[Tq, H, D]`; k, v: `[Tk, G, D]`.
        cu_seqlens_q, cu_seqlens_k: `[S + 1]` int32, the start of each sequence and the end of the last.
        max_seqlen_q, max_seqlen_k: the length of the longest sequence, or an upper bound.
        dropout_p: share of attention weights to drop.
        softmax_scale: factor of the scores; defaults to D ** -0.5.
        causal: query i of n sees keys up to i + (keys - n), aligned at the end. A query that sees no keys returns 0.
        window_size: keys to the left and right that a query sees; -1 for no limit.
        lengths_q, lengths_k: sequence lengths on the host, for backends that loop over sequences; without them, such a
            backend reads `cu_seqlens` from the device, which synchronises.
        backend: one of `BACKENDS`, instead of the one in use.

    Returns:
        `[Tq, H, D]`.

    Inputs that a flash kernel does not support (fp32, the CPU, an odd head size) use torch's SDPA. A kernel that fails its
    test, run once per shape in both directions, is replaced by the next backend; UserError if it was requested by name.

    Memory is linear in Tq + Tk, except for `reference`, and for `sdpa` with a window or if causal with more keys than
    queries, which use queries × keys of one sequence. Costs 4 · Σ queries · keys · H · D FLOPs forward, half if causal.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    options = Options(dropout_p, scale, causal, window_size)
    name = backend or in_use()
    if name in KERNELS and takes(KERNELS[name], q, dropout_p) and q.numel() and k.numel():
        if not torch.compiler.is_compiling():
            name = _working(name, _Shape.of(q, k), options, name in (backend, _asked_for))
        if name in KERNELS:
            return run(name, q, k, v, (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k), options)
    lengths_q = cu_seqlens_q.diff().tolist() if lengths_q is None else lengths_q
    lengths_k = cu_seqlens_k.diff().tolist() if lengths_k is None else lengths_k
    assert sum(lengths_q) == len(q) and sum(lengths_k) == len(k) and len(lengths_q) == len(lengths_k)
    one = _reference if name == "reference" else _sdpa
    if len(set(lengths_q)) == len(set(lengths_k)) == 1:
        q, k, v = (t.unflatten(0, (len(lengths_q), -1)) for t in (q, k, v))
        return one(q, k, v, options).flatten(0, 1)
    parts = zip(q.split(list(lengths_q)), k.split(list(lengths_k)), v.split(list(lengths_k)), strict=True)
    return torch.cat([one(q_one[None], k_one[None], v_one[None], options)[0] for q_one, k_one, v_one in parts])


@dataclass(frozen=True)
class _Shape:
    heads: int
    groups: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> _Shape:
        return cls(q.shape[1], k.shape[1], q.shape[2], q.dtype, q.device)


@cache
def _working(name: str, shape: _Shape, options: Options, asked_for: bool) -> str:
    """`name`, or the first backend after it that computes this shape correctly.

    Each is tested once, in its own thread, so that the caller's context (checkpointing, hooks, inference mode) does not
    affect it. Raises UserError if `name` was requested and fails.
    """
    for candidate in BACKENDS[BACKENDS.index(name) :]:
        if candidate not in KERNELS:
            return candidate
        like = torch.empty(0, shape.heads, shape.size, dtype=shape.dtype, device=shape.device)
        if missing(candidate) is not None or not takes(KERNELS[candidate], like, options.dropout_p):
            continue
        with ThreadPoolExecutor(1, initializer=_on, initargs=(shape.device,)) as thread:
            fault = thread.submit(_fault, candidate, shape, replace(options, dropout_p=0.0)).result()
        if fault is None:
            return candidate
        tried = f"{shape.heads} heads of {shape.size}, {shape.groups} of them for keys, in {shape.dtype}"
        if asked_for:
            raise UserError(f"training.attention: {candidate} fails with {tried}: {fault}; use auto")
        log.warning("attention: %s fails with %s, so another backend is used: %s", candidate, tried, fault)
    raise AssertionError("sdpa computes everything")


def _on(device: torch.device) -> None:
    if device.type == "cuda":  # a thread starts on the first device
        torch.cuda.set_device(device)


TRIED = (64, 17)
"""Tokens in the sequences that a kernel is tested with."""


def _fault(name: str, shape: _Shape, options: Options) -> str | None:
    """What is wrong with a kernel's results and gradients, or None if they match the reference."""
    ends = torch.tensor([0, TRIED[0], sum(TRIED)], dtype=torch.int32, device=shape.device)
    drawn: list[Tensor] = []
    for number, heads in enumerate((shape.heads, shape.groups, shape.groups)):
        places = torch.arange(sum(TRIED) * heads * shape.size, device=shape.device)
        drawn.append((places.view(-1, heads, shape.size) + number).sin().to(shape.dtype).requires_grad_())
    q, k, v = drawn
    try:
        made = run(name, q, k, v, (ends, ends, TRIED[0], TRIED[0]), options)
        made_all = [made, *torch.autograd.grad(made.float().square().sum(), drawn)]
        wanted = _reference_of(drawn, options)
        wanted_all = [wanted, *torch.autograd.grad(wanted.float().square().sum(), drawn)]
        one, other = (torch.cat([t.detach().float().flatten() for t in found]) for found in (made_all, wanted_all))
        off = float((one - other).norm() / other.norm())
    except Exception as error:
        # A kernel of another version or for another machine can fail in many ways.
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None if off < LARGEST_ERROR else f"its results are {100 * off:.0f} % off"


LARGEST_ERROR = 0.05
"""Tolerated relative error, in norm, of a kernel in half precision."""


def _reference_of(drawn: list[Tensor], options: Options) -> Tensor:
    parts = zip(*(t.split(TRIED) for t in drawn), strict=True)
    return torch.cat([_reference(q[None], k[None], v[None], options)[0] for q, k, v in parts])


def _sdpa(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """`[S, tokens, H, D]` for sequences of equal length, by the kernel that torch chooses."""
    queries, keys = q.shape[1], k.shape[1]
    if options.causal and queries > keys:
        # The first queries see no keys.
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


def _reference(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """`[S, tokens, H, D]` by the textbook formula; half precision is computed in fp32."""
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


def _allowed(queries: int, keys: int, options: Options, device: torch.device) -> Tensor | None:
    """`[queries, keys]` bool: which keys each query sees, or None for all."""
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
_asked_for: str | None = None


def in_use() -> str:
    """The backend of this process: the one set by `use`, by default `use("auto")`."""
    return _in_use or use("auto")


def use(wanted: str = "auto") -> str:
    """Chooses the backend of this process, logs it, and returns its name.

    `auto` chooses the first of `BACKENDS` that is installed in a supported version and supports this process's accelerator.
    Raises UserError if a backend requested by name cannot run here.
    """
    global _in_use, _asked_for
    _asked_for = None if wanted == "auto" else wanted
    if wanted == "auto":
        chosen = next(name for name in BACKENDS if missing(name) is None)
    else:
        reason = missing(wanted)
        if reason is not None:
            raise UserError(f"training.attention: {wanted} cannot run here: {reason}; use auto")
        chosen = wanted
    if chosen != _in_use:
        log.info("attention uses %s", chosen)
    _in_use = chosen
    return chosen

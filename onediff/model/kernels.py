"""Attention kernels of libraries for packed sequences: their requirements, and how to call each."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ACCELERATOR = "cuda"
"""The device type of the flash kernels."""
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Options:
    """Arguments of attention besides its tensors."""

    dropout_p: float
    scale: float
    causal: bool
    window_size: tuple[int, int]


@dataclass(frozen=True)
class Kernel:
    """A library's kernel for packed sequences."""

    module: str
    function: str
    package: str
    """The package to install."""
    capabilities: tuple[int, ...]
    """Major compute capabilities that it supports, forward and backward."""
    call: Callable[..., Any]
    """Calls the library's function with our arguments."""
    largest_head: int
    needs: tuple[str, ...]
    """Parameters that the function must have, because other versions of a package may lack them."""
    dropout: bool = False


def _flash_attn_2(run: Any, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: Options) -> Any:
    options_of_run = (options.dropout_p, options.scale, options.causal)
    return run(q, k, v, *at, *options_of_run, window_size=options.window_size, **_deterministic())


def _flash_attn_3(run: Any, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: Options) -> Any:
    named = {"softmax_scale": options.scale, "causal": options.causal, "window_size": options.window_size}
    return run(q, k, v, *at, **named, **_deterministic())


def _deterministic() -> dict[str, bool]:
    """Keyword arguments for flash-attn in deterministic mode; torch's own kernels check the mode themselves."""
    return {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}


def _flash_attn_4(run: Any, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: Options) -> Any:
    # Offsets are keywords, because the fourth positional argument is a different one. Unbounded is None, not -1.
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
        **_deterministic(),
    )


def _torch_varlen(run: Any, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: Options) -> Any:
    left, right = options.window_size
    window = (left, 0) if options.causal else (left, right)
    grouped = q.shape[1] != k.shape[1]
    return run(q, k, v, *at, scale=options.scale, window_size=window, enable_gqa=grouped)


_PLACES = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
_OPTIONS = ("softmax_scale", "causal", "window_size")

KERNELS = {
    "flash_attn_3": Kernel(
        "flash_attn_interface",
        "flash_attn_varlen_func",
        "flash-attn 3 (from source)",
        (9,),
        _flash_attn_3,
        256,
        (*_PLACES, *_OPTIONS),
    ),
    "flash_attn_4": Kernel(
        "flash_attn.cute",
        "flash_attn_varlen_func",
        "flash-attn-4",
        (9, 10, 11, 12),
        _flash_attn_4,
        128,
        (*_PLACES, *_OPTIONS),
    ),
    "flash_attn_2": Kernel(
        "flash_attn",
        "flash_attn_varlen_func",
        "flash-attn",
        (8, 9, 10, 12),
        _flash_attn_2,
        256,
        (*_PLACES, "dropout_p", *_OPTIONS),
        dropout=True,
    ),
    "torch_varlen": Kernel(
        "torch.nn.attention.varlen",
        "varlen_attn",
        "a later torch",
        (8, 9, 10, 12),
        _torch_varlen,
        256,
        ("cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size", "enable_gqa"),
    ),
}
"""Fastest first."""


def takes(kernel: Kernel, q: Tensor, dropout_p: float) -> bool:
    """Whether a kernel supports these queries."""
    size = q.shape[-1]
    return (
        q.device.type == ACCELERATOR
        and q.dtype in HALF
        and size % 8 == 0
        and size <= kernel.largest_head
        and (kernel.dropout or not dropout_p)
    )


def run(name: str, q: Tensor, k: Tensor, v: Tensor, at: tuple[Any, ...], options: Options) -> Tensor:
    """Runs the kernel `name`; `at` is `(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)`."""
    made = KERNELS[name].call(function(name), q, k, v, at, options)
    return made[0] if isinstance(made, tuple) else made


def missing(name: str) -> str | None:
    """Why a backend cannot run in this process, or None."""
    kernel = KERNELS.get(name)
    if kernel is None:
        return None
    major = capability()
    if major is None:
        return "there is no CUDA device"
    if major not in kernel.capabilities:
        return f"it is not built for devices of compute capability {major}.x"
    if function(name) is None:
        return f"{kernel.module} cannot be imported; install {kernel.package}"
    known = inspect.signature(function(name)).parameters
    lacks = [parameter for parameter in kernel.needs if parameter not in known]
    if lacks:
        return f"this version of {kernel.module} lacks {lacks[0]}; install {kernel.package}"
    return None


def capability() -> int | None:
    """Major compute capability of this process's CUDA device, or None."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else None


@cache
def function(name: str) -> Any:
    """The library's function, or None if it cannot be imported."""
    kernel = KERNELS[name]
    try:
        return getattr(importlib.import_module(kernel.module), kernel.function)
    except Exception as error:
        # A build for another CUDA or torch can fail in many ways, which must not stop a run that does not need it.
        if not isinstance(error, ModuleNotFoundError):
            log.warning("%s is installed but cannot be used: %s", kernel.module, " ".join(str(error).split()))
        return None

"""(a) Attention of delta module, tower and language model by backend, in TFLOP/s, and the measured matmul ceiling.

(e) Their agreement with an fp64 reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts.measure import Record, Setting
from gpu_parts.products import ceilings
from onediff.model import attention as ours


@dataclass(frozen=True)
class Case:
    """One shape of attention."""

    name: str
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int
    kv_heads: int
    size: int
    causal: bool

    @property
    def flops(self) -> float:
        """FLOPs of a forward pass; a backward pass has two and a half times as many."""
        products = sum(q * k for q, k in zip(self.queries, self.keys, strict=True))
        return 4 * products * self.heads * self.size / (2 if self.causal else 1)


def cases(dry: bool) -> list[Case]:
    """The shapes of OneDiff at 336 pixels."""
    if dry:
        return [
            Case("delta", (4,) * 2, (18,) * 2, 2, 2, 32, False),
            Case("tower", (17,) * 3, (17,) * 3, 2, 2, 32, False),
            Case("language", (24, 9), (24, 9), 4, 2, 32, True),
        ]
    return [
        Case("delta: 64 queries, 2 x 576 keys, head 64", (64,) * 32, (1152,) * 32, 12, 12, 64, False),
        Case("tower: 577 tokens, head 64", (577,) * 32, (577,) * 32, 16, 16, 64, False),
        Case("language: 2,048 tokens, causal, head 128", (2048,) * 4, (2048,) * 4, 32, 32, 128, True),
        Case(
            "language, packed: 1,300 + 500 + 248, causal", (1300, 500, 248) * 4, (1300, 500, 248) * 4, 32, 8, 128, True
        ),
    ]


SDPA = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
"""Kernels of torch that can be selected by name."""


def backends() -> dict[str, tuple[str, Callable[[], Any]]]:
    """By label: the backend's name, and a context for the call."""
    found: dict[str, tuple[str, Callable[[], Any]]] = {name: (name, nullcontext) for name in ours.BACKENDS}
    for label, name in SDPA.items():
        found[f"sdpa, {label} only"] = ("sdpa", lambda name=name: sdpa_kernel(getattr(SDPBackend, name)))  # type: ignore[misc]
    return found


def tensors(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    """Random queries, keys and values, and the positions of the sequences."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(case.queries), case.heads), (sum(case.keys), case.kv_heads), (sum(case.keys), case.kv_heads)]
    made = [torch.randn(*shape, case.size, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    starts = [torch.tensor([0, *lengths]).cumsum(0).int().to(device) for lengths in (case.queries, case.keys)]
    places = {
        "cu_seqlens_q": starts[0],
        "cu_seqlens_k": starts[1],
        "max_seqlen_q": max(case.queries),
        "max_seqlen_k": max(case.keys),
        "causal": case.causal,
        "lengths_q": case.queries,
        "lengths_k": case.keys,
    }
    return made, places


def speed(setting: Setting) -> Iterator[Record]:
    """(a)"""
    yield from ceilings(setting)
    for case in cases(setting.dry):
        for label, (name, around) in backends().items():
            record = {"case": case.name, "backend": label}
            if (why := ours.missing(name)) is not None:
                yield record | {"not_measured": why}
                continue
            if name == "reference" and not setting.dry:
                yield record | {"not_measured": "only its accuracy is measured"}
                continue
            yield from setting.attempt(
                record, lambda case=case, name=name, around=around: _timed(setting, case, name, around)
            )


def _timed(setting: Setting, case: Case, name: str, around: Callable[[], Any]) -> Record:
    qkv, places = tensors(case, setting.device, torch.float32 if setting.dry else torch.bfloat16)
    with around():
        out = ours.attention(*qkv, **places, backend=name)
        gradient = torch.ones_like(out)
        with torch.no_grad():
            forward = setting.median(lambda: ours.attention(*qkv, **places, backend=name), 0.3)
        both = setting.median(
            lambda: torch.autograd.grad(ours.attention(*qkv, **places, backend=name), qkv, gradient), 0.5
        )
    return {
        "forward_tflops": case.flops / forward / 1e12,
        "both_tflops": 3.5 * case.flops / both / 1e12,
        "forward_ms": 1e3 * forward,
        "both_ms": 1e3 * both,
    }


def agreement(setting: Setting) -> Iterator[Record]:
    """(e)"""
    shapes = [
        Case("pairs of lengths, head 64", (64, 64, 1), (300, 577, 33), 4, 4, 64, False),
        Case("grouped heads, causal, packed", (129, 1, 511, 70), (129, 1, 511, 70), 8, 2, 128, True),
        Case("head 32, some empty", (5, 0, 17), (9, 4, 0), 2, 1, 32, False),
    ]
    precisions = (torch.float32,) if setting.device.type == "cpu" else (torch.bfloat16, torch.float32)
    for case in shapes:
        for dtype in (*precisions, torch.bfloat16) if setting.device.type == "cpu" else precisions:
            exact = _computed(case, setting.device, torch.float64, dtype, "reference")
            for name in ours.BACKENDS:
                record = {"case": case.name, "backend": name, "dtype": str(dtype).removeprefix("torch.")}
                if (why := ours.missing(name)) is not None:
                    yield record | {"not_measured": why}
                    continue
                yield from setting.attempt(
                    record,
                    lambda case=case, dtype=dtype, name=name, exact=exact: errors(setting, case, dtype, name, exact),
                )


def errors(setting: Setting, case: Case, dtype: torch.dtype, name: str, exact: list[Tensor]) -> Record:
    found = _computed(case, setting.device, dtype, dtype, name)
    errors = [float((a.double() - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(found, exact, strict=True)]
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    return {"error": errors[0], "gradient_error": max(errors[1:]), "limit": limit, "agrees": max(errors) <= limit}


def _computed(case: Case, device: torch.device, dtype: torch.dtype, rounded: torch.dtype, name: str) -> list[Tensor]:
    """The result and the three gradients, from numbers that were rounded to `rounded` first."""
    made, places = tensors(case, device, rounded)
    qkv = [tensor.detach().to(dtype).requires_grad_() for tensor in made]
    out = ours.attention(*qkv, **places, backend=name)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device, rounded).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, qkv, weight)]

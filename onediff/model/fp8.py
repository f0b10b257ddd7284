"""Linear layers that multiply in fp8 while they train, with scales that are computed in each call: there is no state.

A layer keeps its weight (in bf16), its name and its place; only what multiplies changes, so that ZeRO, checkpoints, export
and adapters see nothing of it. Both operands of a product are rounded to fp8, each row along what is summed over with a
scale of its own, multiplied and summed in fp32 by torch's `_scaled_mm`, and the result has the type of the input. Forwards
both are e4m3; backwards the gradient is e5m2, whose range is wider (Micikevicius et al., arXiv 2209.05433).

A token's output and gradient depend on no other token. A weight's gradient is summed over tokens, so its operands are
scaled along them; as scales are powers of two, that changes nothing but the rounding of values 2^13 times smaller than the
largest beside them.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onediff.errors import UserError
from onediff.model.lora import is_adapter
from onediff.model.vision import encoder_layers
from onediff.zero.parameters import full_shape

log = logging.getLogger(__name__)

CAPABILITY = (8, 9)
"""The first GPUs with fp8 units: Ada, then Hopper and Blackwell."""
MULTIPLE = 16
"""Widths, and lengths that are summed over, are multiples of it (`_scaled_mm` on a GPU)."""
ROUTERS = ("gate", "router")
"""Layers that choose experts: rounding would send tokens elsewhere."""

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Scaled, the largest value of a row lies in [TOP, 2 · TOP); the types go to 3.5 · TOP.
TOP = {kind: 2.0 ** (math.frexp(torch.finfo(kind).max)[1] - 2) for kind in (E4M3, E5M2)}
EXPONENT = 0x7F800000
"""The bits of an fp32 number that are left of its power of two."""
LEAST = 2.0**-100
"""Rows of smaller values, as of zeros, are scaled as if this were their largest."""


def quantised(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """`[rows, n]` in the fp8 type `kind` as `[rows, n']`, and what to multiply each row with, `[rows, 1]` fp32.

    n' is the next multiple of 16; the padding is zeros. Scales are powers of two: scaling is exact, also in bf16. A row
    with a value that is not finite becomes one without any that is.
    """
    largest = torch.linalg.vector_norm(rows, math.inf, -1, keepdim=True).float()
    power = (largest.view(torch.int32) & EXPONENT).view(torch.float32)
    scale = power.clamp(min=LEAST) / TOP[kind]
    scaled = rows * scale.reciprocal().to(rows.dtype)
    if missing := -rows.shape[-1] % MULTIPLE:
        scaled = F.pad(scaled, (0, missing))
    return scaled.to(kind).contiguous(), scale


def product(a: Tensor, b: Tensor, kind: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """`[m, n] · [k, n]ᵀ + [k]` → `[m, k]` in the type of `a`, from `a` rounded to `kind` and `b` to e4m3."""
    (a8, scale_a), (b8, scale_b) = quantised(a, kind), quantised(b, E4M3)
    return torch._scaled_mm(a8, b8.t(), scale_a=scale_a, scale_b=scale_b.t(), bias=bias, out_dtype=a.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The parameter itself is kept: under ZeRO-3 its values go after this call and come back for the backward pass.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x.flatten(0, -2), weight, E4M3, bias).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            product(rows, weight.t(), E5M2).unflatten(0, gradient.shape[:-1]) if of_x else None,
            product(rows.t(), x.flatten(0, -2).t(), E5M2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[…, in] · [out, in]ᵀ + [out]` → `[…, out]` in fp8, with gradients in fp8; both widths are multiples of 16."""
    return _Linear.apply(x, weight, bias)


class Fp8Linear(nn.Linear):
    """Takes the place of an `nn.Linear`; what it evaluates and generates is what the exported model will."""

    def forward(self, x: Tensor) -> Tensor:
        """`[…, in]` → `[…, out]`."""
        return linear(x, self.weight, self.bias) if self.training else super().forward(x)


def check_fp8() -> None:
    """Raises UserError for a GPU without fp8 units; torch computes the same on the CPU."""
    if torch.cuda.is_available() and (found := torch.cuda.get_device_capability()) < CAPABILITY:
        raise UserError(
            f"training.fp8: {torch.cuda.get_device_name()} has no fp8 units (compute capability {found[0]}.{found[1]}, "
            f"fp8 begins with {CAPABILITY[0]}.{CAPABILITY[1]}: Ada, Hopper, Blackwell); leave it out"
        )


def multiply_in_fp8(model: Any, parts: Iterable[str]) -> str:
    """Lets the transformer layers of `parts` multiply in fp8 while they train; returns in words which, for the log.

    Heads, embeddings, the projector, adapters and layers whose widths do not fit stay as they are; the last are named in
    the log. Raises UserError for a GPU without fp8, or a part of which no layer fits.
    """
    words = []
    if parts := list(dict.fromkeys(parts)):
        check_fp8()
    for part in parts:
        fitting, others = _layers_of(model, part)
        if not fitting:
            raise UserError(
                f"training.fp8: {part} has no linear layer whose widths are multiples of {MULTIPLE}; leave it out"
            )
        for layer in fitting:
            if type(layer) is nn.Linear:
                layer.__class__ = Fp8Linear
            else:
                layer.product = linear
        if others:
            log.info("fp8: of %s stay as they are, no multiples of %d: %s", part, MULTIPLE, ", ".join(others))
        words.append(f"{len(fitting)} layers of {part}")
    return ", ".join(words) or "none"


def _layers_of(model: Any, part: str) -> tuple[list[Any], list[str]]:
    """The linear layers of a part's transformer layers that fit, and the others by name and widths."""
    module = getattr(model, part)
    if part == "delta":
        stack = module.layers
    else:
        stack = encoder_layers(module.model if part == "vision" else module.base_model, "training.fp8")
    fitting, others = [], []
    for name, layer in stack.named_modules():
        # Over a tensor group layers are not nn.Linear, but say by `product` that they can multiply otherwise.
        if not (type(layer) is nn.Linear or hasattr(layer, "product")):
            continue
        if is_adapter(f"{name}.") or name.rpartition(".")[2] in ROUTERS:
            continue
        # Under ZeRO-3 the weight itself has no shape here.
        out, width = full_shape(layer.weight)
        if out % MULTIPLE or width % MULTIPLE:
            others.append(f"{re.sub('^[0-9]+', '*', name)} ({width} to {out})")
        else:
            fitting.append(layer)
    return fitting, list(dict.fromkeys(others))

"""Matrix products: the measured ceiling of the card in bf16 and fp8, and how well fp8 layers agree with fp64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_parts.measure import Record, Setting
from onediff.model.fp8 import CAPABILITY, linear


def ceilings(setting: Setting) -> Iterator[Record]:
    """What the card gives to plain products: in fp8 with one scale for all, and with one for each row, as layers have."""
    for name, scales in (("bf16", 0), ("fp8, one scale", 1), ("fp8, a scale a row", 2)):
        record = {"case": "matmul ceiling", "backend": name}
        yield from setting.attempt(
            record, lambda scales=scales: _in_fp8(setting, scales == 2) if scales else _in_bf16(setting)
        )


def _in_bf16(setting: Setting) -> Record:
    """The best of a few sizes."""
    best = 0.0
    for size in (64,) if setting.dry else (4096, 8192, 12288):
        a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
        best = max(best, 2 * size**3 / setting.median(lambda a=a, b=b: a @ b, 0.5) / 1e12)
    return {"forward_tflops": best}


def _in_fp8(setting: Setting, by_row: bool) -> Record:
    if setting.device.type == "cuda" and torch.cuda.get_device_capability() < CAPABILITY:
        return {"not_measured": "the card has no fp8 units"}
    size = 64 if setting.dry else 8192
    shapes = ((size, 1), (1, size)) if by_row else ((), ())
    scale_a, scale_b = (torch.ones(shape, device=setting.device) for shape in shapes)
    a, b = (torch.randn(size, size, device=setting.device).to(torch.float8_e4m3fn) for _ in range(2))
    taken = setting.median(
        lambda: torch._scaled_mm(a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16), 0.5
    )
    return {"forward_tflops": 2 * size**3 / taken / 1e12}


def layer_agreement(setting: Setting) -> Iterator[Record]:
    """Result and gradients of an fp8 layer on normal values: products of two e4m3 are 0.04 off, those with e5m2 0.06."""
    for tokens in (1000, 1):
        record = {"case": f"fp8 layer, {tokens:,} token(s)", "backend": "fp8", "dtype": "bfloat16"}
        yield from setting.attempt(record, lambda tokens=tokens: _layer_errors(setting, tokens))


def _layer_errors(setting: Setting, tokens: int) -> Record:
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, 256), (512, 256), (512,), (tokens, 512))
    x, weight, bias, gradient = (
        torch.randn(shape, generator=generator).to(setting.device, torch.bfloat16) for shape in shapes
    )

    def computed(function: object, dtype: torch.dtype) -> list[Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]
        out = function(*inputs)  # type: ignore[operator]
        return [out.detach(), *torch.autograd.grad(out, inputs, gradient.to(dtype))]

    pairs = zip(computed(linear, torch.bfloat16), computed(F.linear, torch.float64), strict=True)
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
    limit = 0.08
    return {"error": errors[0], "gradient_error": max(errors[1:]), "limit": limit, "agrees": max(errors) <= limit}

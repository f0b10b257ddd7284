"""Matrix products: the measured ceiling of the GPU in bf16 and fp8, with one scale and with one scale per row."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gpu_parts.measure import Record, Setting

FP8_CAPABILITY = (8, 9)
"""The first GPUs with fp8 units: Ada, then Hopper and Blackwell."""


def ceilings(setting: Setting) -> Iterator[Record]:
    """The speed of plain products in bf16, in fp8 with one scale, and in fp8 with one scale per row."""
    for name, scales in (("bf16", 0), ("fp8, one scale", 1), ("fp8, a scale per row", 2)):
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
    if setting.device.type == "cuda" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        return {"not_measured": "the card has no fp8 units"}
    size = 64 if setting.dry else 8192
    shapes = ((size, 1), (1, size)) if by_row else ((), ())
    scale_a, scale_b = (torch.ones(shape, device=setting.device) for shape in shapes)
    a, b = (torch.randn(size, size, device=setting.device).to(torch.float8_e4m3fn) for _ in range(2))
    taken = setting.median(
        lambda: torch._scaled_mm(a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16), 0.5
    )
    return {"forward_tflops": 2 * size**3 / taken / 1e12}

"""Compares loss and gradients of the whole model on the device with the CPU's in fp32."""

from __future__ import annotations

from typing import Any

import torch
from gpu_parts.measure import Setting
from gpu_parts.models import TINY, build, model_config, pair_rows
from torch import Tensor

from gpu_checks.outcome import Wrong
from onediff.data.rows import collate_packed

FP32 = 1e-4
"""Maximum relative difference from adding in another order."""
BF16 = 2.0
"""Maximum ratio of bf16's error on the device to its error on the CPU."""


def check(setting: Setting) -> dict[str, Any]:
    """Packed rows of a small model with everything training, TF32 off."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = model_config(TINY[1], dry=True)
    rows = pair_rows(config, 4, "two")
    batch = collate_packed(
        [rows[:2], rows[2:]], max(len(a.token_ids) + len(b.token_ids) for a, b in (rows[:2], rows[2:]))
    )
    cpu = torch.device("cpu")
    exact = computed(config, batch, cpu, torch.float32)
    found = {
        "fp32 on the device": error(computed(config, batch, setting.device, torch.float32), exact),
        "bf16 on the device": error(computed(config, batch, setting.device, torch.bfloat16), exact),
        "bf16 on the CPU": error(computed(config, batch, cpu, torch.bfloat16), exact),
    }
    if found["fp32 on the device"] > FP32:
        raise Wrong(f"fp32 is {found['fp32 on the device']:.1e} off", **found)
    if found["bf16 on the device"] > BF16 * found["bf16 on the CPU"]:
        raise Wrong(
            f"bf16 is {found['bf16 on the device']:.3f} off, on the CPU {found['bf16 on the CPU']:.3f}", **found
        )
    return found


def computed(config: Any, batch: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The loss and all gradients, end to end, in fp32 on the CPU; the same weights each time."""
    torch.manual_seed(0)
    model = build(config, torch.device("cpu"), torch.float32).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model = model.to(device)
    loss = model(batch.to(device)).sum() / batch.targets
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([t.detach().float().cpu().flatten() for t in (loss, *gradients)])


def error(found: Tensor, exact: Tensor) -> float:
    """The relative error of the loss or of the gradients, whichever is larger."""
    loss = abs(float(found[0] / exact[0]) - 1)
    return max(loss, float((found[1:] - exact[1:]).norm() / exact[1:].norm()))

"""Training steps in plain torch, for machines without DeepSpeed and for LLaVA: bf16 weights with an fp32 master copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PlainSteps:
    """The computation of ZeRO on one GPU: accumulates and clips gradients, steps in fp32, rounds back."""

    def __init__(self, model: nn.Module, clip: float = 1.0) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.masters = [nn.Parameter(parameter.detach().float().clone()) for parameter in self.parameters]
        fused = self.masters[0].is_cuda or None
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-5, fused=fused)
        self.clip = clip

    def step(self) -> Tensor:
        """One step on the gradients that the parameters have; returns their norm, on the device."""
        used = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if p.grad is not None]
        for parameter, master in used:
            master.grad = parameter.grad.float()  # type: ignore[union-attr]
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_([master for _, master in used], self.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_([parameter for parameter, _ in used], [master for _, master in used])
        return norm


def checkpointed(*parts: Any) -> None:
    """Makes `parts` recompute activations in the backward pass."""
    for part in parts:
        part.gradient_checkpointing_enable({"use_reentrant": False})

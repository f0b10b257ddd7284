"""Fused norms: Apex's kernels if installed, else torch's own.

transformers computes an RMS norm in six operations; torch and Apex have a single kernel. Fusing a norm keeps its parameters,
their names and its place in the model.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onediff.errors import UserError
from onediff.model.apex import find_apex

Kernels = Literal["auto", "apex", "torch", "plain"]
"""`auto` is Apex on a GPU if it is installed, else torch; `plain` leaves the model unchanged."""


class FusedRMSNorm(nn.Module):
    """`weight · x / rms(x)` over the last dimension by torch's kernel; replaces a class of transformers."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        """`[…, width]` → the same, computed in fp32 and rounded once."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


class ApexRMSNorm(FusedRMSNorm):
    """The same by Apex's kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """`[…, width]` → the same."""
        if not on_gpu(x):
            return super().forward(x)
        from apex.normalization.fused_layer_norm import fused_rms_norm_affine

        return fused_rms_norm_affine(x, self.weight, tuple(self.weight.shape), self.variance_epsilon)


class ApexLayerNorm(nn.LayerNorm):
    """A layer norm by Apex's kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """`[…, width]` → the same."""
        if not on_gpu(x):
            return super().forward(x)
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine

        return fused_layer_norm_affine(x, self.weight, self.bias, self.normalized_shape, self.eps)


def on_gpu(x: Tensor) -> bool:
    """Whether Apex's kernels support `x`."""
    return x.is_cuda


def fuse_norms(model: nn.Module, kernels: Kernels = "auto") -> str:
    """Fuses all norms of `model`; returns the name of the implementation, for the log.

    Raises UserError if Apex is requested but cannot be used.
    """
    apex = find_apex()
    if kernels == "apex" and not apex.norms:
        raise UserError(f"training.norms: apex cannot be used: {apex.missing}")
    if kernels == "plain":
        return "transformers"
    with_apex = apex.norms and (kernels == "apex" or (kernels == "auto" and torch.cuda.is_available()))
    for module in model.modules():
        kind: Any = type(module)
        if issubclass(kind, FusedRMSNorm) or is_rms_norm(kind):
            module.__class__ = ApexRMSNorm if with_apex else FusedRMSNorm
        elif with_apex and kind is nn.LayerNorm and module.elementwise_affine and module.bias is not None:
            module.__class__ = ApexLayerNorm
    if with_apex:
        return "Apex"
    return "torch" if kernels == "torch" else f"torch ({apex.missing or 'no GPU for Apex'})"


@lru_cache
def is_rms_norm(kind: Any) -> bool:
    """Whether a class of transformers computes the plain RMS norm. Tested by running it, as some add 1 to the weight."""
    if not kind.__name__.endswith("RMSNorm") or not kind.__module__.startswith("transformers."):
        return False
    with torch.device("cpu"), torch.no_grad():
        try:
            trial = kind(4, eps=0.5)
            trial.weight.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
            x = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
            return torch.allclose(trial(x), F.rms_norm(x, (4,), trial.weight, trial.variance_epsilon))
        except (TypeError, AttributeError):
            return False

"""What crosses a tensor group where a layer that is cut meets one that is not.

The same as Megatron-core's mappings of these names, which allocate on the GPU and along the first dimension only: these run
on any device, and along the tokens of `[batch, tokens, width]`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _gathered(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim)


def _own(whole: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    return whole.chunk(group.size(), dim)[group.rank()].contiguous()


class _Gather(torch.autograd.Function):
    """Parts along `dim` to the whole; every rank goes on with the same computation, so its gradient is its own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _gathered(part, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _own(gradient, ctx.dim, ctx.group), None, None


def gather_from_tensor_model_parallel_region(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[…, width / T]` → `[…, width]`, the same on every rank of the group."""
    return _Gather.apply(part, -1, group)

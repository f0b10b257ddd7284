"""Communication in a tensor group between split and replicated layers.

Equivalent to Megatron-core's mappings of the same names. Those always allocate on the GPU and work along the first
dimension; these work on any device, and along the tokens of `[batch, tokens, width]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Exchange = Callable[[Tensor, int, dist.ProcessGroup], Tensor]


def gathered(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """All ranks' parts, concatenated along `dim`; without a gradient."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim)


def _own(whole: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    return whole.chunk(group.size(), dim)[group.rank()].contiguous()


def _reduce_scattered(whole: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    parts = whole.chunk(group.size(), dim)
    mine = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
    dist.reduce_scatter_tensor(mine, torch.cat(parts), group=group)
    return mine


class _TwoWay(torch.autograd.Function):
    """Exchanges values along `dim` by `there`, and their gradient by `back`; both are functions of this module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Exchange, back: Exchange, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.back, ctx.dim, ctx.group = back, dim, group
        return there(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.back(gradient, ctx.dim, ctx.group), None, None, None, None


def gather_from_tensor_model_parallel_region(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[…, width / T]` → `[…, width]`, the same on every rank of the group."""
    # All ranks then do the same computation, so the gradient is the rank's own part.
    return _TwoWay.apply(part, gathered, _own, -1, group)


def scatter_sums(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[batch, tokens, width]` → `[batch, tokens / ranks, width]`: this rank's share of the sum over ranks."""
    return _TwoWay.apply(part, _reduce_scattered, gathered, 1, group)


class TokenShares:
    """Divides the tokens of the current rows among a tensor group: `[batch, tokens, width]` and back.

    If T does not divide the number of tokens, they are padded with zeros, which are removed again.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.tokens = 0

    def share(self, whole: Tensor) -> Tensor:
        """The rank's share of tokens that are the same on all ranks. Later calls refer to these rows."""
        self.tokens = whole.shape[1]
        return _TwoWay.apply(self._padded(whole), _own, gathered, 1, self.group)

    def gather(self, share: Tensor) -> Tensor:
        """Gathers all tokens for split layers."""
        # Ranks then compute different parts of a layer, so their gradients are summed.
        return _TwoWay.apply(share, gathered, _reduce_scattered, 1, self.group)[:, : self.tokens]

    def gather_alike(self, share: Tensor) -> Tensor:
        """Gathers all tokens for a computation that is the same on all ranks."""
        return _TwoWay.apply(share, gathered, _own, 1, self.group)[:, : self.tokens]

    def sum(self, part: Tensor) -> Tensor:
        """The rank's share of the tokens, summed over ranks."""
        return scatter_sums(self._padded(part), self.group)

    def _padded(self, whole: Tensor) -> Tensor:
        return torch.nn.functional.pad(whole, (0, 0, 0, -self.tokens % self.group.size()))

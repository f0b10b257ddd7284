"""Communication in a tensor group between a layer that is cut and one that is not.

The same as Megatron-core's mappings of these names, which allocate on the GPU and along the first dimension only: these run
on any device, and along the tokens of `[batch, tokens, width]`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Every rank's part, one behind the other along `dim`; without a gradient."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim)


def _own(whole: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    return whole.chunk(group.size(), dim)[group.rank()].contiguous()


class _Gather(torch.autograd.Function):
    """Gathers parts along `dim`; every rank continues with the same computation, so its gradient is its own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return gathered(part, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _own(gradient, ctx.dim, ctx.group), None, None


def gather_from_tensor_model_parallel_region(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[…, width / T]` → `[…, width]`, the same on every rank of the group."""
    return _Gather.apply(part, -1, group)


def _reduce_scattered(whole: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    parts = whole.chunk(group.size(), dim)
    mine = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
    dist.reduce_scatter_tensor(mine, torch.cat(parts), group=group)
    return mine


class _GatherTokens(torch.autograd.Function):
    """Gathers all ranks' tokens. Ranks then compute different parts of a layer, so their gradients are added up."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gathered(share, 1, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _reduce_scattered(gradient, 1, ctx.group), None


class _SumTokens(torch.autograd.Function):
    """Every rank's part of a sum over all tokens to the whole sum for its share of them."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _reduce_scattered(part, 1, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gathered(gradient, 1, ctx.group), None


class _ShareTokens(torch.autograd.Function):
    """From tokens that are the same on every rank to the rank's share of them."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _own(whole, 1, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gathered(gradient, 1, ctx.group), None


def scatter_sums(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[batch, tokens, width]` → `[batch, tokens / ranks, width]`: this rank's share of the sum of all ranks' parts."""
    return _SumTokens.apply(part, group)


class TokenShares:
    """How the tokens of the rows at hand are shared out over a tensor group: `[batch, tokens, width]` and back.

    Where T does not divide the number of tokens, zeros are put behind them and taken away again.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.tokens = 0

    def share(self, whole: Tensor) -> Tensor:
        """The rank's share of tokens that are the same on all ranks; later calls are about these rows."""
        self.tokens = whole.shape[1]
        return _ShareTokens.apply(self._padded(whole), self.group)

    def gather(self, share: Tensor) -> Tensor:
        """All tokens, from every rank's share, for layers that are cut."""
        return _GatherTokens.apply(share, self.group)[:, : self.tokens]

    def gather_alike(self, share: Tensor) -> Tensor:
        """All tokens, from every rank's share, for a computation that is the same on all ranks."""
        return _Gather.apply(share, 1, self.group)[:, : self.tokens]

    def sum(self, part: Tensor) -> Tensor:
        """The rank's share of the ranks' sum over all tokens."""
        return _SumTokens.apply(self._padded(part), self.group)

    def _padded(self, whole: Tensor) -> Tensor:
        return torch.nn.functional.pad(whole, (0, 0, 0, -self.tokens % self.group.size()))

"""Communication in a tensor group between split and replicated layers.

Equivalent to Megatron-core's mappings of the same names. Those always allocate on the GPU and work along the first
dimension; these work on any device, and along the tokens of `[batch, tokens, width]`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """All ranks' parts, concatenated along `dim`; without a gradient."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim)


def _own(whole: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    return whole.chunk(group.size(), dim)[group.rank()].contiguous()


class _Gather(torch.autograd.Function):
    """Gathers parts along `dim`. All ranks then do the same computation, so the gradient is the rank's own part."""

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
    """Gathers all ranks' tokens. Ranks then compute different parts of a layer, so their gradients are summed."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gathered(share, 1, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _reduce_scattered(gradient, 1, ctx.group), None


class _SumTokens(torch.autograd.Function):
    """Sums the ranks' parts over all tokens, and leaves each rank its share of the tokens."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _reduce_scattered(part, 1, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gathered(gradient, 1, ctx.group), None


class _ShareTokens(torch.autograd.Function):
    """Takes the rank's share of tokens that are the same on every rank."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _own(whole, 1, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gathered(gradient, 1, ctx.group), None


def scatter_sums(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[batch, tokens, width]` → `[batch, tokens / ranks, width]`: this rank's share of the sum over ranks."""
    return _SumTokens.apply(part, group)


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
        return _ShareTokens.apply(self._padded(whole), self.group)

    def gather(self, share: Tensor) -> Tensor:
        """Gathers all tokens for split layers."""
        return _GatherTokens.apply(share, self.group)[:, : self.tokens]

    def gather_alike(self, share: Tensor) -> Tensor:
        """Gathers all tokens for a computation that is the same on all ranks."""
        return _Gather.apply(share, 1, self.group)[:, : self.tokens]

    def sum(self, part: Tensor) -> Tensor:
        """The rank's share of the tokens, summed over ranks."""
        return _SumTokens.apply(self._padded(part), self.group)

    def _padded(self, whole: Tensor) -> Tensor:
        return torch.nn.functional.pad(whole, (0, 0, 0, -self.tokens % self.group.size()))

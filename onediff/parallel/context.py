"""Context parallelism with two all-to-all exchanges per layer (DeepSpeed-Ulysses, arXiv 2309.14509).

In the language model, each rank of a context group computes a share of the tokens. Before attention, an exchange turns all
heads of a share of the tokens into a share of the heads of all tokens; after attention, another one reverses it. So every
attention kernel works unchanged, also on packed rows. Everything else (tower, delta module, projector, token embeddings) is
computed redundantly on all ranks of the group.

Gradients are averaged over the group, which is right for parameters with redundant computation. Within the language model,
each rank's gradient is that of its tokens times C, so that the mean is their sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from onediff.parallel.regions import gather_from_tensor_model_parallel_region, scatter_sums


@dataclass(frozen=True)
class ContextSplit:
    """The tokens of a micro-batch, all rows end to end, in C equal shares; the last share is padded with zeros."""

    group: dist.ProcessGroup
    tokens: int

    @property
    def ranks(self) -> int:
        """C."""
        return self.group.size()

    @property
    def share(self) -> int:
        """Tokens of each rank."""
        return -(-self.tokens // self.ranks)

    def own(self, rows: Tensor) -> Tensor:
        """This rank's share `[1, share, …]` of `[rows, tokens, …]`, which is the same on all ranks."""
        found = rows.flatten(0, 1)[self.group.rank() * self.share :][: self.share]
        return _filled(found, self.share)[None]

    def heads(self, *parts: Tensor) -> list[Tensor]:
        """Exchanges queries, keys and values from `[1, heads, share, size]` to `[1, heads / C, tokens, size]`.

        Heads of keys and values are repeated if needed until C divides their number; each stays with its queries.
        """
        to_ranks = [
            part.repeat_interleave(self.ranks // math.gcd(self.ranks, part.shape[1]), 1)[0]
            .transpose(0, 1)
            .unflatten(1, (self.ranks, -1))
            .transpose(0, 1)
            for part in parts
        ]
        received = _Exchange.apply(torch.cat([part.flatten(1) for part in to_ranks], 1), self.group)
        pieces = received.split([part[0].numel() for part in to_ranks], 1)
        return [
            piece.view(part.shape).flatten(0, 1)[: self.tokens].transpose(0, 1)[None]
            for piece, part in zip(pieces, to_ranks, strict=True)
        ]

    def tokens_of_all_heads(self, mixed: Tensor) -> Tensor:
        """The reverse exchange: `[1, tokens, heads / C, size]` to `[1, share, heads, size]`."""
        to_ranks = _filled(mixed[0], self.ranks * self.share).unflatten(0, (self.ranks, -1))
        received = _Exchange.apply(to_ranks.flatten(1), self.group).view(to_ranks.shape)
        return received.transpose(0, 1).flatten(1, 2)[None]

    def targets(self, targets: Tensor) -> int:
        """The number of targets whose loss each rank computes: an equal share, whatever their positions."""
        return max(1, -(-len(targets) // self.ranks))

    def hidden_of_targets(self, hidden: Tensor, places: Tensor) -> Tensor:
        """The hidden states of this rank's targets, `[own targets, width]`, from every rank's `[share, width]`.

        `places` are the positions of all targets. Does not synchronise with the device: each rank contributes zeros for the
        others' tokens, and the sum is scattered.
        """
        every = self.ranks * self.targets(places)
        at = _filled(places, every) - self.group.rank() * self.share
        elsewhere = (at < 0) | (at >= self.share)
        found = hidden[at.clamp(0, self.share - 1)].masked_fill(elsewhere[:, None], 0)
        return scatter_sums(found[None], self.group)[0]

    def own_targets(self, targets: Tensor) -> Tensor:
        """The ids of the targets whose loss this rank computes, padded with 0."""
        each = self.targets(targets)
        return _filled(targets[self.group.rank() * each :][:each], each)

    def losses(self, own: Tensor, targets: int) -> Tensor:
        """`[targets]`: the loss of every target, on all ranks, from the losses that each rank computed."""
        found = gather_from_tensor_model_parallel_region(own, self.group)
        if found.requires_grad:
            # All ranks do the same computation from here, and gradients are averaged over the group.
            found.register_hook(lambda gradient: gradient * self.ranks)
        return found[:targets]


def _filled(values: Tensor, length: int) -> Tensor:
    """`values` padded with zeros to `length`."""
    missing = length - len(values)
    return values if not missing else torch.cat([values, values.new_zeros(missing, *values.shape[1:])])


class _Exchange(torch.autograd.Function):
    """An all-to-all of `[C, numbers]`: sends a row to each rank of the group, and receives a row from each."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchanged(rows, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _exchanged(gradient, ctx.group), None


def _exchanged(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    received = torch.empty_like(rows, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, rows.contiguous(), group=group)
    return received

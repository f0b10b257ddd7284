"""Context parallelism by two exchanges a layer (DeepSpeed-Ulysses, arXiv 2309.14509).

In the language model each rank of a context group computes a share of the tokens. Around attention an exchange turns shares
of the tokens, with all heads, into shares of the heads, with all tokens, and another one turns the result back: every
attention kernel runs as it is, on packed rows too. Everything else (tower, delta module, projector, word embeddings) is
computed alike on all ranks of the group.

The gradient of a parameter is the mean over the group, as it would be if all ranks computed the same. It is for whatever
they do compute alike; inside the language model each rank's gradient is that of its tokens, times C.
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
    """The tokens of one micro-batch, all rows laid end to end, in C equal shares; the last is filled up with zeros."""

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
        """This rank's share `[1, share, …]` of `[rows, tokens, …]`, which all ranks have alike."""
        found = rows.flatten(0, 1)[self.group.rank() * self.share :][: self.share]
        return _filled(found, self.share)[None]

    def heads(self, *parts: Tensor) -> list[Tensor]:
        """Of queries, keys and values `[1, heads, share, size]` all tokens for a share of the heads, in one exchange:
        `[1, heads / C, tokens, size]`.

        Heads of keys and values that C does not divide are repeated until it does; each stays with its queries.
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
        """The way back: `[1, tokens, heads / C, size]` to `[1, share, heads, size]`."""
        to_ranks = _filled(mixed[0], self.ranks * self.share).unflatten(0, (self.ranks, -1))
        received = _Exchange.apply(to_ranks.flatten(1), self.group).view(to_ranks.shape)
        return received.transpose(0, 1).flatten(1, 2)[None]

    def targets(self, targets: Tensor) -> int:
        """How many targets each rank computes the loss of: an equal part of them, wherever they stand."""
        return max(1, -(-len(targets) // self.ranks))

    def hidden_of_targets(self, hidden: Tensor, places: Tensor) -> Tensor:
        """`[own targets, width]` from every rank's share `[share, width]` and the places of all targets.

        The device is not asked who has which: each rank gives zeros for the others' tokens, and the sum is scattered.
        """
        every = self.ranks * self.targets(places)
        at = _filled(places, every) - self.group.rank() * self.share
        elsewhere = (at < 0) | (at >= self.share)
        found = hidden[at.clamp(0, self.share - 1)].masked_fill(elsewhere[:, None], 0)
        return scatter_sums(found[None], self.group)[0]

    def own_targets(self, targets: Tensor) -> Tensor:
        """Of the ids of all targets those whose loss this rank computes; 0 where it has fewer than the others."""
        each = self.targets(targets)
        return _filled(targets[self.group.rank() * each :][:each], each)

    def losses(self, own: Tensor, targets: int) -> Tensor:
        """`[targets]`: the loss of every target, alike on all ranks, from those that each rank computed."""
        found = gather_from_tensor_model_parallel_region(own, self.group)
        if found.requires_grad:
            # All ranks go on alike, and gradients are means over the group.
            found.register_hook(lambda gradient: gradient * self.ranks)
        return found[:targets]


def _filled(values: Tensor, length: int) -> Tensor:
    """`values` with zeros behind them."""
    missing = length - len(values)
    return values if not missing else torch.cat([values, values.new_zeros(missing, *values.shape[1:])])


class _Exchange(torch.autograd.Function):
    """`[C, numbers]`, a row for each rank of the group, to the row that each of them has for this one."""

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

"""Cross-entropy per target, with a whole head or one split over tensor-parallel ranks; logits are never gathered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Logits:
    """How a model turns its head's output into logits: `cap · tanh(output · times / over / cap)`, elementwise."""

    times: float = 1.0
    over: float = 1.0
    cap: float | None = None
    """None for no cap."""

    def __call__(self, output: Tensor) -> Tensor:
        """The logits in fp32."""
        logits = output.float()
        if self.times != 1:
            logits = logits * self.times
        if self.over != 1:
            logits = logits / self.over
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class LossHead(nn.Linear):
    """A language model's head that can also compute the loss, with a single call for any number of chunks.

    Under ZeRO-3, each call gathers the head's weights on all ranks. Ranks have different numbers of targets, so with one
    call per chunk some ranks would wait forever.
    """

    logits = Logits()
    """How the model turns this layer's output into logits."""

    def forward(self, hidden: Tensor, targets: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """The head's output `[…, vocabulary]`, or with `targets`, the loss of each, `[targets]` fp32."""
        if targets is None:
            return super().forward(hidden)
        return by_chunks(self._loss, hidden, targets, chunk)

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(F.linear(hidden, self.weight, self.bias)), targets, reduction="none")


def with_loss(head: Any, logits: Logits = Logits()) -> Any:
    """Enables a head to compute the loss from these logits; turns a plain `nn.Linear` into a `LossHead` in place."""
    if type(head) is nn.Linear:
        head.__class__ = LossHead
    head.logits = logits
    return head


def target_loss(head: Any, hidden: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """The unreduced loss of every target, `[targets]` fp32, from hidden states `[targets, width]`.

    With `chunk`, only `chunk × vocabulary` logits exist at a time instead of `targets × vocabulary`, forward and backward,
    at the cost of a second pass through the head. `head` comes from `with_loss`, or is a tensor-parallel `Head`.
    """
    return head(hidden, targets=targets, chunk=chunk)


def by_chunks(loss: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor, chunk: int | None) -> Tensor:
    """`loss(hidden, targets)` in chunks of targets, with intermediate values recomputed in the backward pass."""
    if chunk is None or len(targets) <= chunk:
        return loss(hidden, targets)
    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    # There is no dropout inside, so no random state to preserve.
    return torch.cat([checkpoint(loss, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in pieces])

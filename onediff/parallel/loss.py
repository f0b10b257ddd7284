"""Cross-entropy per target, with a head that is cut over tensor-parallel ranks or not; logits are never gathered."""

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
    """None for no cap"""

    def __call__(self, output: Tensor) -> Tensor:
        """Logits in fp32 of these entries."""
        logits = output.float()
        if self.times != 1:
            logits = logits * self.times
        if self.over != 1:
            logits = logits / self.over
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class LossHead(nn.Linear):
    """A language-model head that can also give the loss, in one call whatever the number of chunks.

    Under ZeRO-3 a call gathers the head's weights on all ranks together, and ranks differ in their number of targets: one
    call per chunk would leave some of them waiting.
    """

    logits = Logits()
    """what the model makes of this layer's output"""

    def forward(self, hidden: Tensor, targets: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """The head's output `[…, vocabulary]`, or with `targets` the loss of each, `[targets]` fp32."""
        if targets is None:
            return super().forward(hidden)
        return by_chunks(self._loss, hidden, targets, chunk)

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(F.linear(hidden, self.weight, self.bias)), targets, reduction="none")


def with_loss(head: Any, logits: Logits = Logits()) -> Any:
    """The same head, able to give the loss by these logits: a plain `nn.Linear` becomes a `LossHead` in place."""
    if type(head) is nn.Linear:
        head.__class__ = LossHead
    head.logits = logits
    return head


def target_loss(head: Any, hidden: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """The loss of every target, `[targets]` fp32, not reduced, from hidden states `[targets, width]`.

    With `chunk`, logits exist for that many targets at a time, forwards and backwards, at the cost of a second pass
    through the head: `chunk × vocabulary` values instead of `targets × vocabulary`. `head` is one that `with_loss` gave,
    or a tensor-parallel `Head`.
    """
    return head(hidden, targets=targets, chunk=chunk)


def by_chunks(loss: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor, chunk: int | None) -> Tensor:
    """`loss(hidden, targets)`, `chunk` targets at a time; intermediate values are recomputed in the backward pass."""
    if chunk is None or len(targets) <= chunk:
        return loss(hidden, targets)
    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    # No dropout inside: there are no random states to keep.
    return torch.cat([checkpoint(loss, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in pieces])

"""Cross-entropy on a language-model head, cut over tensor-parallel ranks or not; logits are never gathered."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def target_loss(head: Any, hidden: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """The loss of every target, `[targets]` fp32, not reduced, from hidden states `[targets, width]`.

    With `chunk`, logits exist for that many targets at a time, forwards and backwards, at the cost of a second pass
    through the head: `chunk × vocabulary` values instead of `targets × vocabulary`.
    """
    if chunk is None or len(targets) <= chunk:
        return _loss(head, hidden, targets)
    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(_loss, head, h, t, use_reentrant=False) for h, t in pieces])


def _loss(head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    if not hasattr(head, "vocabulary"):
        return F.cross_entropy(head(hidden).float(), targets, reduction="none")
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    # Megatron overwrites its argument, which in fp32 would be the head's own output.
    return vocab_parallel_cross_entropy(head(hidden, gather=False).float().clone(), targets)

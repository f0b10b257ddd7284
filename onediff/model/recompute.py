"""Trades time for memory: values that the backward pass needs and can cheaply recompute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def made_again(made: Tensor, again: Callable[[], Tensor]) -> Iterator[None]:
    """What runs inside does not keep `made` (or a view of it) for its backward pass, but calls `again` for it there.

    For results that cost little beside the memory that they take, such as a product with one number a channel.
    """
    if torch.compiler.is_compiling():  # the compiler decides by itself what to recompute
        yield
        return
    storage = made.untyped_storage().data_ptr()

    def pack(kept: Tensor) -> Any:
        if kept.untyped_storage().data_ptr() != storage or not storage:
            return kept
        return kept.size(), kept.stride(), kept.storage_offset()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return again().as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield

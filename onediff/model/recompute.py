"""Recomputes cheap values in the backward pass to save memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def made_again(made: Tensor, again: Callable[[], Tensor]) -> Iterator[None]:
    """In this context, autograd does not save `made` or its views, but calls `again` in the backward pass instead.

    For results that are cheap to compute but take much memory, such as a product with one number per channel.
    """
    if torch.compiler.is_compiling():  # the compiler decides what to recompute
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

"""Tracks the allocated bytes of tensors by storage, for real and fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.ops.prim.device.default


class Alive(TorchDispatchMode):
    """In this context, counts allocated storages until they are freed. Costs some microseconds per operator."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is DEVICE and isinstance(args[0], FakeTensor) and not args[0].fake_mode.in_kernel_invocation:
            return args[0].fake_device  # more than half of all calls
        made = function(*args, **(kwargs or {}))
        if makes_memory(function):
            for tensor in (made,) if isinstance(made, torch.Tensor) else tree_leaves(made):
                if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                    self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: Any) -> None:
            self.bytes -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


@cache
def makes_memory(function: Any) -> bool:
    """Whether an operator returns new tensors, neither views nor arguments changed in place."""
    return all(returned.alias_info is None for returned in function._schema.returns)


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Total bytes of the storages of these tensors, each storage counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())

"""Tracks the tensors that are created, and those still alive, while some code runs."""

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = (
    torch.ops.aten._local_scalar_dense,  # item(), tolist(), bool() of a tensor
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten.unique_consecutive,
    torch.ops.aten._unique2,
    torch.ops.aten.equal,
    torch.ops.aten.is_nonzero,
)
"""Operators whose result or size the host must know before it can go on."""


class LiveTensors(TorchDispatchMode):
    """In this context, notes every operator, the largest tensor, and the storages of new tensors that are still alive."""

    def __init__(self):
        super().__init__()
        self.operators = []
        self.largest = 0
        """Numbers in the largest tensor that was made."""
        self.peak = 0
        """Largest sum of `sizes`."""
        self._storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.operators.append(function)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                self._storages[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(self.sizes))
        return made

    @property
    def sizes(self):
        """Bytes of every recorded storage that is still alive."""
        self._storages = {place: kept for place, kept in self._storages.items() if not kept[0].expired()}
        return [size for _, size in self._storages.values()]

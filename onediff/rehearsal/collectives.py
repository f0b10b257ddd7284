"""Records a rank's collectives in order, below torch.distributed, including those of DeepSpeed and Megatron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onediff.parallel.topology import Topology

OPS = {
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allgather_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
}
"""Operators of torch's `c10d` and the names of their collectives. Others keep their own name."""


class Collective(NamedTuple):
    """One call. All ranks of a group must make the same calls in the same order."""

    op: str
    group: str
    """`world`, `data`, `node` (the part of `data` on this node), `tensor`, `context`, `rows` (tensor and context), or a
    number of ranks."""
    shape: tuple[int, ...]
    """Shape of the largest tensor involved."""
    dtype: str
    bytes: int
    """Bytes of that tensor."""


class Recorder(TorchDispatchMode):
    """In this context, records every collective, and executes it."""

    def __init__(self, groups: Mapping[tuple[int, ...], str]) -> None:
        """`groups` maps the ranks of each group to its name."""
        super().__init__()
        self.groups = groups
        self.calls: list[Collective] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "c10d":
            self.calls.append(self._call(function, args))
        return function(*args, **(kwargs or {}))

    def _call(self, function: Any, args: tuple[Any, ...]) -> Collective:
        name = function._schema.name.partition("::")[2]
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        largest = max(tensors, key=torch.Tensor.nelement, default=None)
        group = next(_ranks(arg) for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg))
        if largest is None:
            return Collective(OPS.get(name, name), self._named(group), (), "", 0)
        size = largest.nelement() * largest.element_size()
        dtype = str(largest.dtype).removeprefix("torch.")
        return Collective(OPS.get(name, name), self._named(group), tuple(largest.shape), dtype, size)

    def _named(self, ranks: tuple[int, ...]) -> str:
        return self.groups.get(ranks, f"{len(ranks)} ranks")


def _ranks(boxed: Any) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(boxed)))


def group_names(topology: Topology) -> dict[tuple[int, ...], str]:
    """The names of this rank's groups by their ranks. If groups have the same ranks, the larger kind gives the name."""
    tensor = None if topology.mpu is None else topology.mpu.get_tensor_model_parallel_group()
    groups = {"rows": topology.row_group, "context": topology.context_group, "tensor": tensor}
    groups |= {"data": topology.data_group, "world": dist.group.WORLD}
    node = {tuple(ranks): "node" for ranks in topology.same_blocks_by_node() if topology.ranks.rank in ranks}
    return node | {
        tuple(dist.get_process_group_ranks(group)): name for name, group in groups.items() if group is not None
    }

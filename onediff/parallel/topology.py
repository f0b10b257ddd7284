"""The process groups of a world of data × context × tensor ranks, and the `mpu` object through which DeepSpeed sees them.

Tensor groups are Megatron-core's. To DeepSpeed and Megatron, the ranks of a context group are data-parallel ranks: all hold
the same blocks, and each contributes its share of the gradients.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from onediff.config.parallel import ParallelConfig
from onediff.errors import UserError
from onediff.parallel.ranks import COLLECTIVE_TIMEOUT
from onediff.ranks import Ranks

Value = TypeVar("Value")


class Mpu:
    """The model-parallel unit for DeepSpeed, backed by Megatron-core."""

    def __init__(self) -> None:
        from megatron.core import parallel_state as state

        self._state = state

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that hold the same blocks."""
        return self._state.get_data_parallel_group()

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their global ranks."""
        return dist.get_process_group_ranks(self._state.get_data_parallel_group())

    def get_data_parallel_world_size(self) -> int:
        """D · C."""
        return self._state.get_data_parallel_world_size()

    def get_data_parallel_rank(self) -> int:
        """0 … D · C - 1."""
        return self._state.get_data_parallel_rank()

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that together hold one model."""
        return self._state.get_tensor_model_parallel_group()

    def get_tensor_model_parallel_world_size(self) -> int:
        """T."""
        return self._state.get_tensor_model_parallel_world_size()

    def get_tensor_model_parallel_rank(self) -> int:
        """0 … T - 1."""
        return self._state.get_tensor_model_parallel_rank()

    def get_tensor_model_parallel_src_rank(self) -> int:
        """Global rank of the first rank of this tensor group."""
        return self._state.get_tensor_model_parallel_src_rank()

    # DeepSpeed's older names.
    get_model_parallel_group = get_tensor_model_parallel_group
    get_model_parallel_world_size = get_tensor_model_parallel_world_size
    get_model_parallel_rank = get_tensor_model_parallel_rank


@dataclass(frozen=True)
class Topology:
    """This rank's position in the world: `rank = (dp_rank · cp_size + cp_rank) · tp_size + tp_rank`.

    The ranks of a tensor group are neighbours within a node, and so are the ranks that compute the same rows.
    """

    ranks: Ranks
    tp_size: int
    mpu: Mpu | None
    """None without tensor parallelism, so that DeepSpeed treats all ranks as data-parallel."""
    sequence: bool = False
    """Whether sequence parallelism is on."""
    cp_size: int = 1
    context_group: dist.ProcessGroup | None = None
    """Ranks with the same dp_rank and tp_rank, which divide the language model's tokens; None if C is 1."""
    row_group: dist.ProcessGroup | None = None
    """Ranks with the same dp_rank, which compute the same rows; None if each rank has its own rows."""

    @property
    def dp_size(self) -> int:
        """D, the number of groups of ranks that read different samples."""
        return self.ranks.world // (self.tp_size * self.cp_size)

    @property
    def dp_rank(self) -> int:
        """0 … D - 1."""
        return self.ranks.rank // (self.tp_size * self.cp_size)

    @property
    def copies(self) -> int:
        """D · C, the number of tensor groups, and of ranks over which ZeRO partitions the model."""
        return self.ranks.world // self.tp_size

    @property
    def copy(self) -> int:
        """Index of this rank's tensor group, 0 … D · C - 1."""
        return self.ranks.rank // self.tp_size

    @property
    def cp_rank(self) -> int:
        """0 … C - 1."""
        return self.copy % self.cp_size

    @property
    def tp_rank(self) -> int:
        """0 … T - 1."""
        return self.ranks.rank % self.tp_size

    def same_blocks_by_node(self) -> list[list[int]]:
        """For each node and tp_rank, the node's ranks that hold the same blocks. Nodes have whole tensor groups."""
        per_node, size = self.ranks.local_world, self.tp_size
        nodes = [range(first, first + per_node) for first in range(0, self.ranks.world, per_node)]
        return [list(node[place::size]) for node in nodes for place in range(size)]

    @property
    def reads(self) -> bool:
        """Whether this rank reads the rows for all ranks with the same dp_rank."""
        return self.ranks.rank % (self.tp_size * self.cp_size) == 0

    @property
    def data_group(self) -> dist.ProcessGroup:
        """Ranks with the same tp_rank, D · C of them."""
        world = dist.group.WORLD
        assert world is not None, "torch.distributed is not initialised"
        return world if self.mpu is None else self.mpu.get_data_parallel_group()

    def from_reader(self, value: Value) -> Value:
        """Broadcasts `value` from the reading rank to all ranks that compute the same rows. Collective over them."""
        return _from_first(value, self.row_group)

    def from_tensor_rank_zero(self, value: Value) -> Value:
        """Broadcasts `value` from the first rank of this tensor group. Collective over the group."""
        return _from_first(value, None if self.mpu is None else self.mpu.get_tensor_model_parallel_group())


def _from_first(value: Value, group: dist.ProcessGroup | None) -> Value:
    if group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, group=group, group_src=0)
    return box[0]


def check_world(config: ParallelConfig, ranks: Ranks) -> None:
    """Raises UserError if the number of processes is not D × C × T."""
    size, keys, world = config.row_ranks, config.row_keys, ranks.world
    if world % size:
        raise UserError(f"{keys}: {world} processes cannot be split into groups of {size}; start a multiple of {size}")
    if not config.across_nodes and ranks.local_world % size:
        raise UserError(
            f"{keys}: groups of {size} do not fit into nodes of {ranks.local_world} processes; "
            "choose a divisor, or allow it with parallel.across_nodes=true"
        )


def create_topology(config: ParallelConfig, ranks: Ranks) -> Topology:
    """Creates the process groups for D × C × T. Collective; call once per process, after torch.distributed is initialised.

    Raises UserError if the world does not fit.
    """
    check_world(config, ranks)
    mpu = None if config.tensor == 1 else _tensor_groups(config.tensor)
    rows = None if mpu is None else mpu.get_tensor_model_parallel_group()
    context = None
    if config.context > 1:
        size, tensor = config.row_ranks, config.tensor
        groups = [list(range(first, first + size)) for first in range(0, ranks.world, size)]
        context = own_group([group[place::tensor] for group in groups for place in range(tensor)])
        rows = context if tensor == 1 else own_group(groups)
    sequence = config.sequence and config.tensor > 1
    return Topology(ranks, config.tensor, mpu, sequence, config.context, context, rows)


def own_group(groups: list[list[int]]) -> dist.ProcessGroup:
    """Creates process groups of these ranks; returns the one that contains this rank. Collective."""
    own, _ = dist.new_subgroups_by_enumeration(groups, timeout=COLLECTIVE_TIMEOUT)
    assert own is not None
    return own


def _tensor_groups(tensor: int) -> Mpu:
    """Creates Megatron-core's groups of `tensor` ranks. Collective; call once per process."""
    from onediff.model.lean import lean_imports

    # Megatron-core warns about every missing optional library.
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    # It imports distutils before setuptools, which warns when it replaces distutils.
    warnings.filterwarnings("ignore", message="Distutils was imported before|Setuptools is replacing distutils")
    with lean_imports():
        import megatron.core.tensor_parallel  # noqa: F401  (imported here to stay lean)
        from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor, create_gloo_process_groups=False)
    assert parallel_state.get_tensor_model_parallel_world_size() == tensor
    return Mpu()

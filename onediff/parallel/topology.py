"""World = data × context × tensor: the process groups, and the small `mpu` through which DeepSpeed sees them.

Tensor groups are Megatron-core's. The ranks of a context group are data-parallel ones to DeepSpeed and Megatron: all of
them hold the same blocks, and each adds its share of the gradients.
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
    """What DeepSpeed asks of a model-parallel unit; the answers are Megatron-core's."""

    def __init__(self) -> None:
        from megatron.core import parallel_state as state

        self._state = state

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that hold the same blocks."""
        return self._state.get_data_parallel_group()

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their global numbers."""
        return dist.get_process_group_ranks(self._state.get_data_parallel_group())

    def get_data_parallel_world_size(self) -> int:
        """D · C."""
        return self._state.get_data_parallel_world_size()

    def get_data_parallel_rank(self) -> int:
        """0 … D · C - 1."""
        return self._state.get_data_parallel_rank()

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that hold the blocks of one model."""
        return self._state.get_tensor_model_parallel_group()

    def get_tensor_model_parallel_world_size(self) -> int:
        """T."""
        return self._state.get_tensor_model_parallel_world_size()

    def get_tensor_model_parallel_rank(self) -> int:
        """0 … T - 1."""
        return self._state.get_tensor_model_parallel_rank()

    def get_tensor_model_parallel_src_rank(self) -> int:
        """Global number of the first rank of this tensor group."""
        return self._state.get_tensor_model_parallel_src_rank()

    # DeepSpeed's older names for the same.
    get_model_parallel_group = get_tensor_model_parallel_group
    get_model_parallel_world_size = get_tensor_model_parallel_world_size
    get_model_parallel_rank = get_tensor_model_parallel_rank


@dataclass(frozen=True)
class Topology:
    """Where this rank stands: `rank = (dp_rank · cp_size + cp_rank) · tp_size + tp_rank`.

    Tensor groups are neighbours in a node, and so are the ranks that compute the same rows.
    """

    ranks: Ranks
    tp_size: int
    mpu: Mpu | None
    """None without tensor parallelism: DeepSpeed then uses all ranks as data-parallel ones"""
    sequence: bool = False
    """the tensor group shares out the tokens where its layers are not cut"""
    cp_size: int = 1
    context_group: dist.ProcessGroup | None = None
    """ranks with the same dp_rank and tp_rank, which share out the language model's tokens; None if C is 1"""
    row_group: dist.ProcessGroup | None = None
    """ranks with the same dp_rank, which compute the same rows; None if each rank has rows of its own"""

    @property
    def dp_size(self) -> int:
        """D: how many groups of ranks read different samples."""
        return self.ranks.world // (self.tp_size * self.cp_size)

    @property
    def dp_rank(self) -> int:
        """0 … D - 1."""
        return self.ranks.rank // (self.tp_size * self.cp_size)

    @property
    def copies(self) -> int:
        """D · C: how many tensor groups there are. ZeRO shares a model out over that many ranks."""
        return self.ranks.world // self.tp_size

    @property
    def copy(self) -> int:
        """Number of this rank's tensor group, 0 … D · C - 1."""
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
        """Ranks of one node that hold the same blocks, for each node and tp_rank; nodes have whole tensor groups."""
        per_node, size = self.ranks.local_world, self.tp_size
        nodes = [range(first, first + per_node) for first in range(0, self.ranks.world, per_node)]
        return [list(node[place::size]) for node in nodes for place in range(size)]

    @property
    def reads(self) -> bool:
        """Whether this rank reads the rows for all ranks with its dp_rank."""
        return self.ranks.rank % (self.tp_size * self.cp_size) == 0

    @property
    def data_group(self) -> dist.ProcessGroup:
        """Ranks with the same tp_rank, D · C of them."""
        world = dist.group.WORLD
        assert world is not None, "torch.distributed is not initialised"
        return world if self.mpu is None else self.mpu.get_data_parallel_group()

    def from_reader(self, value: Value) -> Value:
        """What the rank that reads the rows gave, on all ranks that compute them. Collective over them."""
        return _from_first(value, self.row_group)

    def from_tensor_rank_zero(self, value: Value) -> Value:
        """What rank 0 of this tensor group gave, on all of the group. Collective over it."""
        return _from_first(value, None if self.mpu is None else self.mpu.get_tensor_model_parallel_group())


def _from_first(value: Value, group: dist.ProcessGroup | None) -> Value:
    if group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, group=group, group_src=0)
    return box[0]


def check_world(config: ParallelConfig, ranks: Ranks) -> None:
    """Raises UserError when the processes that were started cannot be D × C × T."""
    size, keys, world = config.row_ranks, config.row_keys, ranks.world
    if world % size:
        raise UserError(f"{keys}: {world} processes cannot be split into groups of {size}; start a multiple of {size}")
    if not config.across_nodes and ranks.local_world % size:
        raise UserError(
            f"{keys}: groups of {size} do not fit into nodes of {ranks.local_world} processes; "
            "choose a divisor, or allow it with parallel.across_nodes=true"
        )


def create_topology(config: ParallelConfig, ranks: Ranks) -> Topology:
    """Makes the process groups for D × C × T. Collective, once per process; torch.distributed must be initialised.

    Raises UserError when the world does not fit.
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
    """Of process groups of these ranks, the one that this rank is in. Collective."""
    own, _ = dist.new_subgroups_by_enumeration(groups, timeout=COLLECTIVE_TIMEOUT)
    assert own is not None
    return own


def _tensor_groups(tensor: int) -> Mpu:
    """Megatron-core's groups of `tensor` ranks. Collective, once per process."""
    from onediff.model.lean import lean_imports

    # It warns about every missing optional library.
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    # It imports distutils before setuptools, which takes its place and says so.
    warnings.filterwarnings("ignore", message="Distutils was imported before|Setuptools is replacing distutils")
    with lean_imports():
        import megatron.core.tensor_parallel  # noqa: F401  (the rest of what a rank needs of it)
        from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor, create_gloo_process_groups=False)
    assert parallel_state.get_tensor_model_parallel_world_size() == tensor
    return Mpu()

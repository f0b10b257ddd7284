"""World = tensor × data: Megatron-core's process groups, and the small `mpu` through which DeepSpeed sees them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from onediff.config.parallel import ParallelConfig
from onediff.errors import UserError
from onediff.ranks import Ranks


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
        """D."""
        return self._state.get_data_parallel_world_size()

    def get_data_parallel_rank(self) -> int:
        """0 … D - 1."""
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
    """Where this rank stands: `rank = dp_rank · tp_size + tp_rank`, so that tensor groups are neighbours in a node."""

    ranks: Ranks
    tp_size: int
    mpu: Mpu | None
    """None without tensor parallelism: DeepSpeed then uses all ranks as data-parallel ones"""
    sequence: bool = False
    """the tensor group shares out the tokens where its layers are not cut"""

    @property
    def dp_size(self) -> int:
        """D: how many ranks read different samples."""
        return self.ranks.world // self.tp_size

    @property
    def dp_rank(self) -> int:
        """0 … D - 1."""
        return self.ranks.rank // self.tp_size

    @property
    def tp_rank(self) -> int:
        """0 … T - 1."""
        return self.ranks.rank % self.tp_size

    @property
    def data_group(self) -> dist.ProcessGroup:
        """Ranks with the same tp_rank."""
        world = dist.group.WORLD
        assert world is not None, "torch.distributed is not initialised"
        return world if self.mpu is None else self.mpu.get_data_parallel_group()

    def from_tensor_rank_zero(self, value: Any) -> Any:
        """What rank 0 of this tensor group gave, on all of the group."""
        if self.mpu is None:
            return value
        box = [value]
        dist.broadcast_object_list(
            box, self.mpu.get_tensor_model_parallel_src_rank(), self.mpu.get_tensor_model_parallel_group()
        )
        return box[0]


def check_world(config: ParallelConfig, ranks: Ranks) -> None:
    """Raises UserError when the processes that were started cannot be T × D."""
    tensor, world = config.tensor, ranks.world
    if world % tensor:
        raise UserError(
            f"parallel.tensor: {world} processes cannot be groups of {tensor}; start a multiple of {tensor}"
        )
    if not config.across_nodes and ranks.local_world % tensor:
        raise UserError(
            f"parallel.tensor: groups of {tensor} do not fit into nodes of {ranks.local_world} processes; "
            "choose a divisor, or allow it with parallel.across_nodes=true"
        )


def create_topology(config: ParallelConfig, ranks: Ranks) -> Topology:
    """Makes the process groups for T × D. Collective, once per process; torch.distributed must be initialised.

    Raises UserError when the world does not fit.
    """
    check_world(config, ranks)
    if config.tensor == 1:
        return Topology(ranks, 1, None)
    from onediff.model.lean import lean_imports

    # It warns about every missing optional library.
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    # It imports distutils before setuptools, which takes its place and says so.
    warnings.filterwarnings("ignore", message="Distutils was imported before|Setuptools is replacing distutils")
    with lean_imports():
        import megatron.core.tensor_parallel  # noqa: F401  (the rest of what a rank needs of it)
        from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(config.tensor, create_gloo_process_groups=False)
    assert parallel_state.get_tensor_model_parallel_world_size() == config.tensor
    return Topology(ranks, config.tensor, Mpu(), config.sequence)

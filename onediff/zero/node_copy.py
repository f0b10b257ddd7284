"""Hierarchical sharding at ZeRO-3 (DeepSpeed's hpZ, ZeRO++, arXiv 2306.10209): a copy of the weights on each node.

When a rank releases a gathered parameter, it keeps 1/(ranks of its node) of it, so that the next gather stays within the
node. DeepSpeed drops the copies of trained parameters after each step, and keeps those of frozen parameters.

DeepSpeed stores the ranks of a node in a global variable, which it would set once per process, to neighbouring ranks of the
world. This module sets it to the right ranks, also under tensor parallelism, and only for phases that use it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from onediff.config.parallel import ParallelConfig, ranks_within
from onediff.errors import UserError
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.parallel.topology import Topology, own_group


def start(config: ParallelConfig, topology: Topology) -> None:
    """Makes nodes keep copies if `config` says so. Call before a phase's model is sharded. Collective.

    Raises UserError on every rank if the layout of ranks does not allow it.
    """
    if config.shard_within != "node":
        return
    ranks = topology.ranks
    largest = torch.tensor(ranks.local_world)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    with raise_on_all_ranks():
        if ranks.local_world != int(largest) or ranks.rank % ranks.local_world != ranks.local_rank:
            raise UserError(
                "parallel.shard_within: node needs the same number of ranks on every node, numbered node by node; rank "
                f"{ranks.rank} is number {ranks.local_rank} of {ranks.local_world} on its node, and the largest node has "
                f"{int(largest)}; change the launch, or use shard_within=world"
            )
        sharing = ranks_within(config.shard_within, topology.tp_size, ranks.world, ranks.local_world)
    if sharing:
        _deepspeed_groups()._ZERO_PARAM_INTRA_PARALLEL_GROUP = own_group(topology.same_blocks_by_node())


def end() -> None:
    """Stops keeping copies. Call when the phase's engine is released. Collective."""
    groups = _deepspeed_groups()
    group, groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = groups._ZERO_PARAM_INTRA_PARALLEL_GROUP, None
    if group is not None:
        dist.destroy_process_group(group)


def _deepspeed_groups() -> Any:
    from onediff.zero.lean import deepspeed

    return deepspeed.utils.groups

"""Hierarchical sharding at ZeRO-3 (DeepSpeed's hpZ, ZeRO++, arXiv 2306.10209): a copy of the weights on each node.

A rank that gives a gathered parameter back keeps a share of it, 1/(ranks of its node), so that the next gather stays within
the node. DeepSpeed drops the copies of trained parameters after each step, and keeps those of frozen ones for good.

DeepSpeed finds the ranks of a node in a global variable, which it would fill with neighbours in the world, once per
process. Here it gets the right ranks beside tensor parallelism too, and only while a phase asks for them.
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
    """Call before a phase's model is sharded: lets its nodes keep copies if `config` asks for it. Collective.

    Raises UserError on every rank when the nodes cannot.
    """
    if config.shard_within != "node":
        return
    ranks = topology.ranks
    largest = torch.tensor(ranks.local_world)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    with raise_on_all_ranks():
        if ranks.local_world != int(largest) or ranks.rank % ranks.local_world != ranks.local_rank:
            raise UserError(
                "parallel.shard_within: node needs as many ranks on every node, numbered one node after the other; rank "
                f"{ranks.rank} is number {ranks.local_rank} of {ranks.local_world} on its node, and another node has "
                f"{int(largest)}; start them so, or use shard_within=world"
            )
        sharing = ranks_within(config.shard_within, topology.tp_size, ranks.world, ranks.local_world)
    if sharing:
        _deepspeed_groups()._ZERO_PARAM_INTRA_PARALLEL_GROUP = own_group(topology.same_blocks_by_node())


def end() -> None:
    """Call when the phase's engine is released. Collective."""
    groups = _deepspeed_groups()
    group, groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = groups._ZERO_PARAM_INTRA_PARALLEL_GROUP, None
    if group is not None:
        dist.destroy_process_group(group)


def _deepspeed_groups() -> Any:
    from onediff.zero.lean import deepspeed

    return deepspeed.utils.groups

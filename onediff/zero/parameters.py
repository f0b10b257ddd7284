"""Parameters sharded by ZeRO-3: the model keeps an empty tensor, and each data-parallel rank keeps one range."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether ZeRO-3 shards the parameter and gathers it for each use."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: Any) -> torch.Size:
    """The shape of the whole parameter, or of this rank's block under tensor parallelism."""
    return getattr(parameter, "ds_shape", parameter.shape)


def full_size(parameter: Any) -> int:
    """Number of elements of the whole parameter."""
    return getattr(parameter, "ds_numel", parameter.numel())


def own_range(parameter: Any) -> tuple[torch.Tensor, int, int]:
    """This rank's range of a sharded parameter: flat tensor, offset and length, including the last rank's padding."""
    length = parameter.ds_tensor.ds_numel
    return parameter.ds_tensor, length * dist.get_rank(parameter.ds_process_group), length


def shard(parameter: nn.Parameter, settings: dict[str, Any], data_group: dist.ProcessGroup, mpu: Any) -> None:
    """Shards a parameter over the data-parallel ranks and frees the rest of it. Collective."""
    from onediff.zero.lean import deepspeed

    holder = nn.Module()
    holder.parameter = parameter
    deepspeed.zero.Init(
        module=holder,
        config_dict_or_path=settings,
        data_parallel_group=data_group,
        mpu=mpu,
        zero_param_parallel_group=deepspeed.utils.groups._get_zero_param_intra_parallel_group(),
    )
    drop_node_copies([parameter])  # the weights are filled in later


def drop_node_copies(parameters: Iterable[Any]) -> None:
    """Drops the copies of `node_copy`. Call after writing weights to the ranks' own ranges, which makes copies stale."""
    for parameter in parameters:
        if hasattr(parameter, "ds_secondary_tensor"):
            parameter.ds_secondary_tensor = None

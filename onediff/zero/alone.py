"""DeepSpeed on a single rank of a simulated world: replaces its exchanges with other ranks, and lists its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from onediff.zero.engine import ZeroEngine
from onediff.zero.parameters import is_sharded, own_range
from onediff.zero.state import optimizer_of


@contextmanager
def trusts_itself() -> Iterator[None]:
    """In this context, DeepSpeed runs on one rank without the others.

    DeepSpeed compares lists with rank 0, such as the order of ZeRO-3's gathers: the broadcast still happens, but the rank
    keeps its own list. Gathering a parameter or scattering a gradient takes one operator, not one per rank.
    """
    from deepspeed.runtime.zero import stage3, utils
    from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle, Init

    convert = Init._convert_to_deepspeed_param

    def converted(init: Any, parameter: Any) -> None:
        convert(init, parameter)
        parameter.all_gather_coalesced = partial(gathered_together, init, parameter.all_gather_coalesced)

    def own_list(numbers: list[int]) -> list[int]:
        dist.broadcast(torch.tensor(numbers, dtype=torch.int64), 0)
        return numbers

    def own_length(numbers: list[int]) -> None:
        dist.broadcast(torch.tensor(len(numbers)), 0)

    with (
        patch.object(utils, "get_lst_from_rank0", own_list),
        patch.object(utils, "assert_lst_len_same_as_other_ranks", own_length),
        patch.object(Init, "_convert_to_deepspeed_param", converted),
        patch.object(AllGatherCoalescedHandle, "wait", gathered_whole),
        patch.object(stage3, "reduce_scatter_coalesced", scattered_whole),
    ):
        yield


def gathered_together(
    init: Any, gather: Callable[..., Any], parameters: Iterable[Any], safe_mode: bool = False, quantize: bool = False
) -> Any:
    """DeepSpeed's `all_gather_coalesced` of several parameters, without a view for each rank's piece.

    Cases that DeepSpeed gathers differently (a single parameter, quantised, by `all_reduce`) use its own `gather`.
    """
    from deepspeed.runtime.zero.partition_parameters import (
        AllGatherCoalescedHandle,
        ZeroParamStatus,
        _dist_allgather_fn,
    )

    parameters = sorted(parameters, key=lambda parameter: parameter.ds_id)
    alike = {(id(init.get_partition_dp_group(p)), p.ds_tensor.dtype, p.ds_secondary_tensor is None) for p in parameters}
    plain = not (quantize or safe_mode or init.allgather_sequential or init.use_all_reduce_for_fetch_params)
    ranks = init._partition_world_size(parameters[0]) if parameters else 1
    if not plain or len(parameters) < 2 or len(alike) > 1 or ranks == 1:
        return gather(parameters, safe_mode=safe_mode, quantize=quantize)
    for parameter in parameters:
        assert parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE
        parameter.ds_status = ZeroParamStatus.INFLIGHT
    group, rank = init.get_partition_dp_group(parameters[0]), init._partition_rank(parameters[0])
    size = sum(parameter.ds_tensor.ds_numel for parameter in parameters)
    if parameters[0].ds_secondary_tensor is not None:
        group, rank, ranks = init.zero_param_process_group, init.rank_in_group, init.num_ranks_in_param_group
        size *= init.num_param_groups
    whole = parameters[0].ds_tensor.new_empty(size * ranks)
    handle = _dist_allgather_fn(whole.narrow(0, rank * size, size), whole, group)
    return AllGatherCoalescedHandle(handle, parameters, [whole], ranks, False)


def gathered_whole(handle: Any, handle_dependency: bool = True) -> None:
    """DeepSpeed's `wait` for a gather, for meta tensors: allocates each parameter in one piece."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if handle.complete:
        return
    assert not handle.quantization
    handle.allgather_handle.wait()
    for parameter in handle.params:
        assert parameter.ds_status == ZeroParamStatus.INFLIGHT
        parameter.data = handle.partitions[0].new_empty(parameter.ds_shape, dtype=parameter.ds_tensor.dtype)
        parameter.ds_status = ZeroParamStatus.AVAILABLE
    handle.complete = True


@torch.no_grad()
def scattered_whole(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup) -> list[torch.Tensor]:
    """DeepSpeed's `reduce_scatter_coalesced`, for meta tensors: allocates a single buffer."""
    from deepspeed.runtime.comm.coalesced_collectives import _torch_reduce_scatter_fn

    world = dist.get_world_size(group)
    sizes = [-(-tensor.numel() // world) for tensor in tensors]
    if len(tensors) == 1 and tensors[0].numel() == sizes[0] * world:
        buffer = tensors[0].view(-1)
    else:
        buffer = tensors[0].new_empty(sum(sizes) * world)
    buffer.div_(world)
    rank = dist.get_rank(group)
    own = buffer.narrow(0, rank * sum(sizes), sum(sizes))
    _torch_reduce_scatter_fn(buffer, own, group=group)
    pieces = zip(own.split(sizes), tensors, strict=True)
    # The last ranks' pieces are padded.
    return [piece[: max(0, tensor.numel() - rank * len(piece))] for piece, tensor in pieces]


def weights(engine: ZeroEngine) -> list[torch.Tensor]:
    """The weights that this rank keeps between steps."""
    return [own_range(p)[0] if is_sharded(p) else p for p in engine.module.parameters()]


def optimizer_states(engine: ZeroEngine) -> list[torch.Tensor]:
    """The master weights, if they are separate from the weights, and the optimizer's moments."""
    optimizer = optimizer_of(engine.deepspeed)
    if optimizer is None:
        return []
    own = {id(parameter) for parameter in engine.module.parameters()}
    masters = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
    masters += [shard.values for shard in engine.shards() if shard.owner is not None and id(shard.values) not in own]
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return [*masters, *moments]


def gradients(engine: ZeroEngine) -> list[torch.Tensor]:
    """The accumulated gradients before the optimizer steps, wherever DeepSpeed's stage keeps them."""
    zero = engine.deepspeed.optimizer
    found: list[Any] = [p.grad for p in engine.module.parameters()]
    for name in ("averaged_gradients", "all_grad_tensors"):
        for group in getattr(zero, name, {}).values():
            found += group or []
    found += getattr(zero, "fp32_groups_gradients_flat", [])
    found.append(getattr(zero, "grad_partitions_flat_buffer", None))
    return [tensor for tensor in found if torch.is_tensor(tensor)]

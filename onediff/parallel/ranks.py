"""Creates and destroys the process groups."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from onediff.errors import UserError
from onediff.parallel import accelerator
from onediff.ranks import Ranks
from onediff.zero import process

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Timeout of a collective."""


def initialize_distributed(
    timeout: timedelta = COLLECTIVE_TIMEOUT,
    first: Callable[[], None] | None = None,
    tensor: int = 1,
    flight_records: Path | None = None,
) -> Ranks:
    """Initialises torch.distributed and DeepSpeed: nccl (with gloo for CPU tensors) if there is a GPU, else gloo.

    Args:
        timeout: of every collective.
        first: runs on rank 0 before the group exists; the others wait without a limit while rank 0 is alive.
        tensor: the tensor-parallel size to be used.
        flight_records: a folder into which each rank writes its latest NCCL calls if one times out.

    Returns:
        The ranks in use.
    """
    import torch
    import torch.distributed as dist

    ranks = Ranks.from_environment()
    # DeepSpeed and Megatron read these even if the process group already exists.
    os.environ.update(ranks.variables())
    accelerator.set_defaults(tensor, flight_records)
    gpu = torch.cuda.is_available()
    if gpu:
        device = own_device(ranks, torch.cuda.device_count())
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device)  # DeepSpeed uses it as the device index
    process.prepare(gpu)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        if ranks.alone:
            if first is not None:
                first()
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            store = _meeting_point(ranks, timeout)
            if first is not None:
                _rank_zero_first(ranks, store, first)
            dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timeout)
    process.join(gpu)
    return ranks


def own_device(ranks: Ranks, visible: int) -> int:
    """The index of a rank's GPU. Of the node's GPUs, `visible` are visible: all, or only its own (`--gpus-per-task`).

    Raises UserError if there are several, but fewer than ranks.
    """
    if visible == 1:
        return 0
    if ranks.local_rank >= visible:
        raise UserError(
            f"rank {ranks.rank} is number {ranks.local_rank} of {ranks.local_world} on its node, but sees {visible} GPUs; "
            "request one GPU per rank (`gpus_per_node` in the profile)"
        )
    return ranks.local_rank


def _meeting_point(ranks: Ranks, timeout: timedelta) -> Any:
    """The rendezvous store, at the launcher's address or rank 0's."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank=ranks.rank, world_size=ranks.world, timeout=timeout))
    store.set_timeout(timeout)
    return dist.PrefixStore("onediff", store)


def _rank_zero_first(ranks: Ranks, store: Any, first: Callable[[], None]) -> None:
    """Runs `first` on rank 0. The others check once per second whether it is done, and fail if rank 0 died."""
    done = "rank-zero-was-first"
    if ranks.rank == 0:
        first()
        store.set(done, "yes")
    else:
        while not store.check([done]):
            time.sleep(1)


def shutdown() -> None:
    """Destroys the process groups in order, because a rank that leaves early makes gloo abort in the others."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    dist.barrier()
    if "megatron.core.parallel_state" in sys.modules:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
    process.leave()

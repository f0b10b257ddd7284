"""Starts and ends the process groups."""

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
"""Longest wait of a rank for the others in one collective."""


def initialize_distributed(
    ranks: Ranks | None = None,
    timeout: timedelta = COLLECTIVE_TIMEOUT,
    first: Callable[[], None] | None = None,
    tensor: int = 1,
    flight_records: Path | None = None,
) -> Ranks:
    """Joins torch.distributed and DeepSpeed: nccl (with gloo for CPU tensors) where there is a GPU, else gloo.

    `timeout` bounds every collective. `first` is what rank 0 does before there is a group; the others wait for it as
    long as rank 0 lives, without a limit.
    `tensor` is the tensor-parallel size to come. Into the folder `flight_records` each rank writes its latest NCCL calls
    when one of them times out. Returns the ranks in use (those of the environment by default).
    """
    import torch
    import torch.distributed as dist

    ranks = ranks or Ranks.from_environment()
    # DeepSpeed and Megatron read these even when the process group exists already.
    os.environ.update(ranks.variables())
    accelerator.set_defaults(tensor, flight_records)
    gpu = torch.cuda.is_available()
    if gpu:
        device = own_device(ranks, torch.cuda.device_count())
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device)  # DeepSpeed takes it for the number of the device
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
    """The number of a rank's GPU among the `visible` ones: all of its node's, or only its own (`--gpus-per-task`).

    Raises UserError when there are fewer than ranks, but more than one.
    """
    if visible == 1:
        return 0
    if ranks.local_rank >= visible:
        raise UserError(
            f"rank {ranks.rank} is the node's number {ranks.local_rank} of {ranks.local_world}, and sees {visible} GPUs; "
            "ask for one GPU a rank (`gpus_per_node` in the profile)"
        )
    return ranks.local_rank


def _meeting_point(ranks: Ranks, timeout: timedelta) -> Any:
    """The store at the launcher's address, or at rank 0's, through which the ranks find each other."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank=ranks.rank, world_size=ranks.world, timeout=timeout))
    store.set_timeout(timeout)
    return dist.PrefixStore("onediff", store)


def _rank_zero_first(ranks: Ranks, store: Any, first: Callable[[], None]) -> None:
    """Rank 0 runs `first`; the others check once a second whether it is done, and fail if rank 0 died."""
    done = "rank-zero-was-first"
    if ranks.rank == 0:
        first()
        store.set(done, "yes")
    else:
        while not store.check([done]):
            time.sleep(1)


def shutdown() -> None:
    """Ends the process groups in order: a rank that leaves early makes gloo abort in the others."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    dist.barrier()
    if "megatron.core.parallel_state" in sys.modules:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
    process.leave()

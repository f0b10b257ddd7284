"""The process groups' beginning and end."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from onediff.ranks import Ranks


def initialize_distributed(ranks: Ranks | None = None, timeout: timedelta = timedelta(minutes=30)) -> Ranks:
    """Joins torch.distributed and DeepSpeed: nccl (with gloo for CPU tensors) where there is a GPU, else gloo.

    `timeout` bounds every collective. Returns the ranks in use (those of the environment by default).
    """
    import torch
    import torch.distributed as dist

    from onediff.parallel.lean import deepspeed

    ranks = ranks or Ranks.from_environment()
    # DeepSpeed and Megatron read these even when the process group exists already.
    os.environ.update(ranks.variables())
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(ranks.local_rank)
    else:
        # DeepSpeed would compile a shared-memory collective here at first use; the ranks of two runs, or of two nodes
        # that share one /dev/shm, then talk to each other by mistake.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        if ranks.alone:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.world, timeout=timeout)
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    return ranks


def shutdown() -> None:
    """Ends the process groups in order: a rank that leaves early makes gloo abort in the others."""
    import deepspeed.comm
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    dist.barrier()
    if "megatron.core.parallel_state" in sys.modules:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
    deepspeed.comm.destroy_process_group()

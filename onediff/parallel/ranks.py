"""Who this process is among the processes of a run, and the process groups' beginning and end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from onediff.errors import UserError

# The names under which torchrun and DeepSpeed, then srun, tell a process who it is.
_NAMES = {
    "rank": ("RANK", "SLURM_PROCID"),
    "local_rank": ("LOCAL_RANK", "SLURM_LOCALID"),
    "world": ("WORLD_SIZE", "SLURM_NTASKS"),
    "local_world": ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"),
}


@dataclass(frozen=True)
class Ranks:
    """One process of `world`: its global `rank`, its `local_rank` on this node, and the ranks of one node."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    local_world: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """What torchrun, DeepSpeed's launcher or srun say in the environment; one process alone where nobody says.

        Raises UserError for a value that is no number, or a launcher that gave only some of them.
        """
        slurm = "RANK" not in environment and "SLURM_PROCID" in environment and "MASTER_ADDR" in environment
        if "RANK" not in environment and not slurm:
            return cls()
        found = {}
        for field, names in _NAMES.items():
            name = names[1 if slurm else 0]
            text = environment.get(name)
            if text is None and field == "local_world":
                continue
            if text is None or not text.isdigit():
                raise UserError(f"environment {name}: expected a number, got {text!r}; start the ranks with a launcher")
            found[field] = int(text)
        found.setdefault("local_world", found["world"])
        if not 0 <= found["rank"] < found["world"]:
            raise UserError(f"environment: rank {found['rank']} does not exist among {found['world']} processes")
        return cls(**found)


def initialize_distributed(ranks: Ranks | None = None, timeout: timedelta = timedelta(minutes=30)) -> Ranks:
    """Joins torch.distributed and DeepSpeed: nccl (with gloo for CPU tensors) where there is a GPU, else gloo.

    Needs MASTER_ADDR and MASTER_PORT in the environment when there is more than one rank; `timeout` bounds every
    collective. Returns the ranks in use (those of the environment by default).
    """
    import torch
    import torch.distributed as dist

    from onediff.parallel.lean import deepspeed

    ranks = ranks or Ranks.from_environment()
    # DeepSpeed and Megatron read these even when the process group exists already.
    for field, names in _NAMES.items():
        os.environ[names[0]] = str(getattr(ranks, field))
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(ranks.local_rank)
    else:
        # DeepSpeed would compile a shared-memory collective here at first use; the ranks of two runs, or of two nodes
        # that share one /dev/shm, then talk to each other by mistake.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        if ranks.world == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if missing:
                raise UserError(f"environment {missing[0]}: not set; {ranks.world} processes need one meeting point")
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

"""Set-up and tear-down of DeepSpeed's communication, which uses torch.distributed's process groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def prepare(gpu: bool) -> None:
    """Call before the process group is created."""
    from onediff.zero.lean import deepspeed

    if not gpu:
        # DeepSpeed would compile a shared-memory collective at first use. Ranks of two runs, or of two nodes that share a
        # /dev/shm, would then exchange data by mistake.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def join(gpu: bool) -> None:
    """Call after torch.distributed is initialised."""
    from onediff.zero.lean import deepspeed

    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, verbose=False)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in pinned memory, for asynchronous copies to the device."""
    from onediff.zero.lean import deepspeed

    found: torch.Tensor = deepspeed.accelerator.get_accelerator().pin_memory(tensor)
    return found


def leave() -> None:
    """Destroys all process groups."""
    import deepspeed.comm

    deepspeed.comm.destroy_process_group()

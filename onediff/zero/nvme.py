"""Optimizer states in files on NVMe (DeepSpeed's ZeRO-3 swapping): their folder, and the machine's requirements."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from onediff.config.parallel import SUB_GROUP, SWAPPED_TENSORS, ParallelConfig
from onediff.errors import UserError
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.ranks import Ranks
from onediff.zero.parameters import full_size

log = logging.getLogger(__name__)

OPS = ("pin_memory", "async_io")
"""Extensions that DeepSpeed compiles for swapping."""


@contextmanager
def swap_folder(config: ParallelConfig, run: Path, ranks: Ranks) -> Iterator[Path | None]:
    """The run's own folder for swap files, below `config.nvme_folder`, or None if nothing is swapped. Collective.

    The folder is emptied at the start and removed at the end. Raises UserError on every rank if this machine cannot swap.
    """
    if config.nvme_folder is None or config.offload_optimizer != "nvme":
        yield None
        return
    whole = run.resolve()
    folder = config.nvme_folder / f"{whole.name}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"
    with raise_on_all_ranks():
        if ranks.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            compile_swapping()
    with raise_on_all_ranks():
        _make(folder, ranks.rank)
    try:
        yield folder
    finally:
        # Other ranks may have failed, so none waits: each removes its own files, and the last one removes the folders.
        shutil.rmtree(folder / "zero_stage_3" / "optimizer" / f"rank{ranks.rank}", ignore_errors=True)
        for empty in (folder / "zero_stage_3" / "optimizer", folder / "zero_stage_3", folder):
            with suppress(OSError):
                empty.rmdir()


def compile_swapping() -> None:
    """Compiles DeepSpeed's asynchronous I/O if needed. Raises UserError if that fails."""
    from torch.utils import cpp_extension

    from onediff.zero.lean import deepspeed

    builder = deepspeed.ops.op_builder.AsyncIOBuilder()
    if torch.version.cuda and torch.cuda.is_available() and cpp_extension.CUDA_HOME is None:
        raise UserError(
            "parallel.offload_optimizer: nvme needs the CUDA toolkit to compile an extension of DeepSpeed; install "
            f"version {torch.version.cuda}, the version of torch, and set CUDA_HOME"
        )
    if not builder.is_compatible():
        raise UserError(
            "parallel.offload_optimizer: nvme needs libaio with its headers and a C++ compiler; install libaio-dev and g++"
        )
    folders = [Path(cpp_extension._get_build_directory(name, verbose=False)) for name in OPS]
    with (folders[-1] / "onediff.lock").open("w") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        for name, folder in zip(OPS, folders, strict=True):
            # A killed compilation leaves this file behind, and torch would wait for it forever.
            (folder / "lock").unlink(missing_ok=True)
            if not (folder / f"{name}.so").is_file():
                log.info("compiling DeepSpeed's %s in %s: once per machine, a few minutes at most", name, folder)
        try:
            builder.load(verbose=False)
        except (RuntimeError, ImportError, OSError) as error:
            raise UserError(
                "parallel.offload_optimizer: nvme needs DeepSpeed's async_io, which could not be compiled with the C++ "
                f"compiler and ninja: {(str(error).splitlines() or [type(error).__name__])[0]}"
            ) from None


def check_room(folder: Path, groups: Sequence[dict[str, Any]], dp_size: int, local_world: int) -> None:
    """Raises UserError if the optimizer states of `groups`, partitioned over `dp_size` ranks, do not fit.

    They need disk space for all ranks of this node, and locked memory for one sub-group per rank.
    """
    shares = [[-(-full_size(p) // dp_size) for p in group["params"]] for group in groups]
    largest = 0
    for group in shares:
        size = 0
        for share in group:
            size = share + (size if size < SUB_GROUP else 0)
            largest = max(largest, size)
    wanted, free = 4 * SWAPPED_TENSORS * sum(map(sum, shares)) * local_world, shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"parallel.nvme_folder: optimizer states take {wanted / 1e9:.1f} GB per node, but {folder} has only "
            f"{free / 1e9:.1f} GB"
        )
    locked = 4 * SWAPPED_TENSORS * largest
    if not can_lock(locked):
        raise UserError(
            f"parallel.offload_optimizer: nvme locks {locked / 1e9:.2f} GB of memory in each process, more than "
            "this machine allows; raise the limit (`ulimit -l`)"
        )


def keep_gradients(zero: Any) -> None:
    """Keeps gradients in host memory, where DeepSpeed's optimizer `zero` accumulates them, also during its step.

    DeepSpeed 0.19 would swap them. It would then place parameters of odd sizes where direct I/O silently fails to write, and
    give a parameter without a gradient the previous contents of a buffer.
    """
    from deepspeed.accelerator import get_accelerator

    swap_in = zero._optimizer_states_and_gradient_swap_in
    # Checkpoints are written in a thread, which has no current device.
    device = get_accelerator().current_device_name()
    kept = zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition

    def swap_in_states(group: int, timer_names: set[str] | None = None) -> None:
        swap_in(group, timer_names)
        get_accelerator().synchronize(device)  # gradients may still be in transit from the GPU
        gradients = [kept[parameter.ds_id].view(-1).float() for parameter in zero.fp16_groups[group]]
        zero.fp32_partitioned_groups_flat[group].grad = torch.cat(gradients)

    zero._optimizer_states_and_gradient_swap_in = swap_in_states
    zero.optimizer_swapper.swap_out_gradients = lambda parameter, gradient_offsets, gradient_tensors: None


def can_lock(size: int) -> bool:
    """Whether `size` bytes of memory can be locked; without this check, DeepSpeed would abort."""
    libc = ctypes.CDLL(None)
    with mmap.mmap(-1, size) as memory:
        begin = ctypes.c_char.from_buffer(memory)
        locked = libc.mlock(ctypes.byref(begin), ctypes.c_size_t(size)) == 0
        del begin
    return locked


def _make(folder: Path, rank: int) -> None:
    """Creates `folder`. Raises UserError if it does not support direct writes of a kilobyte, as DeepSpeed makes.

    DeepSpeed itself does not check whether its writes succeed.
    """
    probe = folder / f"probe-{rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 1024) as piece:
                os.pwrite(file, piece, 1024)
        finally:
            os.close(file)
            probe.unlink()
    except OSError as error:
        raise UserError(f"parallel.nvme_folder: {folder} does not support direct I/O: {error.strerror}") from None

"""Settings of CUDA, cuBLAS and NCCL that are read when the device or a process group is first used."""

from __future__ import annotations

import os
from pathlib import Path

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Names of torch's setting for its memory, the second the newer."""
RECORDER = {
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE": "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
}
"""Names of the flight recorder's settings, and the older ones that torch still heeds."""
FLIGHT_RECORD = "nccl_trace_rank_"
"""Beginning of the name of each rank's NCCL flight record; the rank's number follows."""


def set_defaults(tensor: int = 1, flight_records: Path | None = None) -> None:
    """Sets the variables below, each unless it is set already. Call before the GPU or NCCL is used.

    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: micro-batches differ in size, and segments that grow are not
        fragmented by that.
    CUDA_DEVICE_MAX_CONNECTIONS=1, with tensor parallelism: Megatron overlaps its all-reduces with matrix products, which
        needs one queue to the GPU.
    TORCH_FR_BUFFER_SIZE=2000, TORCH_FR_DUMP_TEMP_FILE and TORCH_NCCL_DUMP_ON_TIMEOUT=1, with `flight_records`: each rank
        remembers its latest 2,000 collectives, and writes them into that folder when one of them times out.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    if tensor > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if flight_records is not None:
        wanted = ("2000", str(flight_records.resolve() / FLIGHT_RECORD))
        for (name, older), value in zip(RECORDER.items(), wanted, strict=True):
            if older not in os.environ:
                os.environ.setdefault(name, value)
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def be_deterministic() -> None:
    """Makes kernels return the same bits for the same input, or raise RuntimeError if none can.

    Call before the GPU is used: cuBLAS reads its setting when it starts.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling memory that is written anyway takes time, and only shows reads of what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False

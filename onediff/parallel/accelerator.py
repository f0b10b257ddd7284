"""Settings of CUDA, cuBLAS and NCCL, which are read when the device or a process group is first used."""

from __future__ import annotations

import os
from pathlib import Path

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Names of torch's allocator setting, the second being newer."""
RECORDER = {
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE": "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
}
"""Names of the flight recorder's settings, and the older names that torch still accepts."""
FLIGHT_RECORD = "nccl_trace_rank_"
"""File name prefix of NCCL flight records, followed by the rank."""


def set_defaults(tensor: int = 1, flight_records: Path | None = None) -> None:
    """Sets these environment variables unless they are already set. Call before using the GPU or NCCL.

    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, which avoids fragmentation by micro-batches of different sizes.
    CUDA_DEVICE_MAX_CONNECTIONS=1, with tensor parallelism: Megatron overlaps all-reduces with matrix products, which needs a
        single queue to the GPU.
    TORCH_FR_BUFFER_SIZE=2000, TORCH_FR_DUMP_TEMP_FILE and TORCH_NCCL_DUMP_ON_TIMEOUT=1, with `flight_records`: each rank
        records its latest 2,000 collectives, and writes them to that folder if one times out.
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
    """Enables deterministic kernels only; operators without one raise RuntimeError.

    Call before using the GPU, because cuBLAS reads its setting when it starts.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling uninitialised memory takes time, and only helps to find reads of it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False

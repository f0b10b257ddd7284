"""Saves a snapshot of a GPU's memory when it runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

log = logging.getLogger(__name__)


@contextmanager
def snapshot_on_out_of_memory(file: Path) -> Iterator[None]:
    """A context in which running out of GPU memory writes a snapshot to `file`, logs its path and reraises the error.

    The snapshot holds every block in use and the Python lines that allocated it; https://docs.pytorch.org/memory_viz shows
    it. Torch records those lines at each allocation, about 2 µs each. Does nothing without a GPU.
    """
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.memory._record_memory_history(enabled="state", context="alloc", stacks="python")
    try:
        yield
    except torch.OutOfMemoryError:
        # The error's traceback still references the tensors that were in use.
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(file))
        except (OSError, RuntimeError) as fault:
            log.error("the GPU is out of memory, and %s cannot be written: %s", file, fault)
        else:
            log.error(
                "the GPU is out of memory; open %s in https://docs.pytorch.org/memory_viz to see what fills it", file
            )
        raise
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)

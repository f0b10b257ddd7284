"""What filled a GPU's memory, kept when it runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

log = logging.getLogger(__name__)


@contextmanager
def snapshot_on_out_of_memory(file: Path) -> Iterator[None]:
    """Inside, running out of GPU memory leaves a snapshot in `file` before the error goes on, and one line that names it.

    The snapshot holds every block in use and the Python lines that asked for it, as https://docs.pytorch.org/memory_viz
    shows them. Torch notes those lines at each allocation, some 2 µs each. Does nothing without a GPU.
    """
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.memory._record_memory_history(enabled="state", context="alloc", stacks="python")
    try:
        yield
    except torch.OutOfMemoryError:
        # The error's traceback still holds what was in use.
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

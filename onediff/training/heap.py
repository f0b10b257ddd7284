"""Keeps memory that a step on the CPU frees for the next step."""

from __future__ import annotations

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's `mallopt`."""
LARGEST_ON_HEAP = 32 << 20
"""Bytes; larger tensors get their own mapping. glibc accepts no higher limit."""
KEPT = 1 << 30
"""Free bytes at the end of the heap above which glibc returns memory to the system."""


def keep_freed_memory() -> None:
    """Lets glibc reuse memory that CPU tensors free, instead of returning and requesting it at every step.

    Without this, each step of the demo touches 2,000 to 5,000 fresh pages, which the kernel fills with zeros: 5 % of a step.
    The process holds at most `KEPT` bytes more than it needs. Does nothing with a GPU or without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if torch.cuda.is_available() or mallopt is None:
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
    mallopt(M_TRIM_THRESHOLD, KEPT)

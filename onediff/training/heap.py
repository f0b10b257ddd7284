"""The memory that a step on the CPU frees is kept for the next step."""

from __future__ import annotations

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's `mallopt`."""
LARGEST_ON_HEAP = 32 << 20
"""Bytes; larger tensors get a mapping of their own. glibc takes no larger limit."""
KEPT = 1 << 30
"""Bytes that may be free at the end of the heap before they return to the system."""


def keep_freed_memory() -> None:
    """Lets glibc reuse what tensors on the CPU free, instead of giving it back and asking for it again at every step.

    Without this, each step of the demo touches 2,000 to 5,000 fresh pages, which the kernel fills with zeros: 5 % of a step.
    The process keeps at most `KEPT` more than it needs. Does nothing where there is a GPU, or no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if torch.cuda.is_available() or mallopt is None:
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
    mallopt(M_TRIM_THRESHOLD, KEPT)

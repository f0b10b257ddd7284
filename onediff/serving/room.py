"""Bounds the memory of concurrent requests: the bytes of their bodies, and the pairs being decoded."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from onediff.serving.batching import Overloaded


class Room:
    """Memory for requests that have not reached the model's queue, which holds only prepared rows."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.decoding = threading.BoundedSemaphore(os.cpu_count() or 1)
        """One pair per processor: a decoded image takes 3 bytes per pixel, however small its file."""
        self._bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Room for a body of `size` bytes. Raises Overloaded if there is none at the moment."""
        with self._lock:
            if self._bytes + size > self.most_bytes:
                raise Overloaded(f"requests of {self._bytes / 1e6:.0f} MB are being answered; try again later")
            self._bytes += size
        try:
            yield
        finally:
            with self._lock:
                self._bytes -= size

"""Whether everything that a checkpoint holds is finite: noted where it lies as it is read, looked at when that is done."""

from __future__ import annotations

import torch
from torch import Tensor

from onediff.parallel.safetensors_writer import Entry


class Finite:
    """Notes on what is read; making them does not wait for the device."""

    def __init__(self) -> None:
        self._largest: list[tuple[str, Tensor]] = []

    def noting(self, entry: Entry) -> Entry:
        """The same entry, of which a note is made when it is read."""
        if not entry.dtype.is_floating_point or 0 in entry.shape:
            return entry

        def read() -> Tensor:
            values = entry.read()
            # Of all norms this one needs no memory, and is finite just where all numbers are.
            self._largest.append((entry.name, torch.linalg.vector_norm(values.detach(), float("inf"))))
            return values

        return entry._replace(read=read)

    def first_fault(self) -> str | None:
        """The first entry with a number that is not finite, such as `exp_avg/delta.tokens`; waits for the notes."""
        return next((name for name, largest in self._largest if not bool(largest.isfinite())), None)

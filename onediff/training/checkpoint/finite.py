"""Checks that all values of a checkpoint are finite: recorded on the device as they are read, read back at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from onediff.parallel.safetensors_writer import Entry


class Finite:
    """Records whether entries are finite as they are read; does not wait for the device."""

    def __init__(self) -> None:
        self._largest: list[tuple[str, Tensor]] = []

    def noting(self, entry: Entry) -> Entry:
        """The same entry, recorded when it is read."""
        if not entry.dtype.is_floating_point or 0 in entry.shape:
            return entry

        def read() -> Tensor:
            values = entry.read()
            # This norm needs no memory, and is finite if and only if all values are.
            self._largest.append((entry.name, torch.linalg.vector_norm(values.detach(), float("inf"))))
            return values

        return entry._replace(read=read)

    def first_fault(self) -> str | None:
        """The first entry with a value that is not finite, such as `exp_avg/delta.tokens`; waits for the device."""
        return next((name for name, largest in self._largest if not bool(largest.isfinite())), None)

"""The sequences in the rows of a batch, as `cu_seqlens`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


def each_tensor(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    """A copy of a dataclass with `change` applied to every tensor, including those of nested dataclasses."""
    changed: dict[str, Any] = {}
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            changed[name] = change(value)
        elif is_dataclass(value):
            changed[name] = each_tensor(value, change)
    return replace(part, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class Segments:
    """The sequences of all rows, end to end: offsets on the device for attention kernels, lengths on the host.

    The padding at the end of a packed row is a sequence too, so the lengths add up to rows · tokens.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    """`[sequences + 1]` int32: the start of each sequence, and the end of the last."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Segments:
        """Sequences of these lengths, on the CPU."""
        return cls(tuple(lengths), torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32))

    @classmethod
    def even(cls, rows: int, tokens: int, device: torch.device) -> Segments:
        """One sequence per row, created on the device."""
        ends = torch.arange(0, (rows + 1) * tokens, tokens, dtype=torch.int32, device=device)
        return cls((tokens,) * rows, ends)

    @property
    def longest(self) -> int:
        """The length of the longest sequence."""
        return max(self.lengths, default=0)

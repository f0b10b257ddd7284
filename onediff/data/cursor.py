"""A rank's position in its data, which the loader yields with every batch and resumes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

LaneCursor = tuple[int, ...]
"""A lane's position, as indexes into its endless list of samples: those waiting for a packed row, oldest first, then the
next new one. Without packing no sample waits: `(n,)`."""


class Cursor(NamedTuple):
    """The positions of one rank's lanes after a batch, and what the rank has left out since it started reading."""

    lanes: dict[int, LaneCursor]
    skipped: Counter[str]
    """Skipped samples, by kind of fault."""
    cut: Counter[str]
    """Answers cut at `data.max_tokens`, by data set."""

    @classmethod
    def start(cls, lanes: Iterable[int]) -> Cursor:
        """Before the first sample of each lane."""
        return cls(dict.fromkeys(lanes, (0,)), Counter(), Counter())

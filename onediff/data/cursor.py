"""Where a rank stands in its data: what the loader yields with every batch, and all that going on from there needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

LaneCursor = tuple[int, ...]
"""Where one lane goes on, as indexes into its endless list of samples: those that wait for a packed row, oldest first, and
then the first one that nobody has looked at. Rows of one sample each leave none waiting: `(n,)`."""


class Cursor(NamedTuple):
    """Where the lanes of one rank continue after a batch, and what the rank has left out since it started reading."""

    lanes: dict[int, LaneCursor]
    skipped: Counter[str]
    """Unreadable samples, by kind of fault."""
    cut: Counter[str]
    """Answers cut at `data.max_tokens`, by data set."""

    @classmethod
    def start(cls, lanes: Iterable[int]) -> Cursor:
        """Before the first sample of each lane."""
        return cls(dict.fromkeys(lanes, (0,)), Counter(), Counter())

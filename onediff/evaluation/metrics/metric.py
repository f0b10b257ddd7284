"""The interface of a metric: sums per pair, and scores from summed rows.

Every score is a function of summed rows, so the same function scores all pairs, one pair, a group of pairs, and a bootstrap
resample (a weighted sum).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from onediff.errors import UserError

Images = Callable[[str], Any]
"""Maps a pair's id to its encoded images, an object with `before` and `after`, or None if it has none."""


class Unavailable(Exception):
    """A metric cannot be computed here; the message is one line for the user."""


@dataclass(frozen=True)
class Pairs:
    """The captions of one system and their references, pair by pair in the same order."""

    ids: Sequence[str]
    captions: Sequence[str]
    """One per pair, as the system wrote it."""
    references: Sequence[Sequence[str]]
    """Those of each pair, after the protocol's treatment."""
    tokens: Sequence[str]
    """The captions as lower-case tokens without punctuation, joined by blanks."""
    reference_tokens: Sequence[Sequence[str]]
    """The references in the same form."""
    tokenisation: str
    """How the tokens were made: `ptb`, or `plain` if Java was missing."""
    change_types: Sequence[str | None]
    """That of each pair, if it is known."""
    changes: Sequence[Mapping[str, Any] | None]
    """The change list in each pair's `meta`, if it is known."""
    read_type: Callable[[str], str | None] | None = None
    """The protocol's function that reads a change type from a caption."""
    images: Images | None = None
    """Maps an id to its images."""

    def subset(self, chosen: Sequence[int]) -> Pairs:
        """The pairs at these indexes."""
        columns = ("ids", "captions", "references", "tokens", "reference_tokens", "change_types", "changes")
        taken: dict[str, Any] = {name: [getattr(self, name)[i] for i in chosen] for name in columns}
        return replace(self, **taken)


class SummedScores(ABC):
    """Scores that are functions of summed rows."""

    scores: tuple[str, ...]
    """Their names, in the order of tables."""
    lower_is_better: tuple[str, ...] = ()
    """Those that are better when lower."""

    @abstractmethod
    def values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Summed rows [..., columns] → each of `scores` [...] as a fraction; NaN where it is undefined."""


class Metric(SummedScores):
    """One metric, or several from the same statistics. All evaluations share one object."""

    name: ClassVar[str]
    """Its name in `--metrics`."""
    shown: tuple[str, ...] = ()
    """The scores in tables by change type and on the report's cards."""
    blank: str = ""
    """Says why one of `shown` may be undefined for a group of pairs."""
    ptb_only: bool = False
    """Whether it is meaningless for tokens made by the plain rule."""
    by_group: bool = False
    """Whether a row depends on the other pairs, so that a group of pairs needs rows of its own."""
    waits: bool = False
    """Whether it mostly waits for another program, and is therefore computed in parallel with the others."""

    @abstractmethod
    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        """[pairs, columns] of each system. Raises Unavailable if it cannot be computed here."""

    def values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Unless a metric has other statistics, the means of rows [1, a column for each score]; zeros leave a pair out."""
        return {name: ratio(sums[..., column], sums[..., 0]) for column, name in enumerate(self.scores, start=1)}

    def applies(self, pairs: Pairs) -> bool:
        """Whether these pairs have what it needs; if not, it is silently left out."""
        return True

    def notes(self, sums: np.ndarray) -> list[str]:
        """What a reader of its scores must know, one line each."""
        return []

    def of_model(self, model: str) -> Metric:
        """The same metric with the model of that name, or "" for none. Raises UserError if it takes no model."""
        if model:
            raise UserError(f"metric {self.name!r} takes no model; write its name alone")
        return self


S = TypeVar("S", bound=SummedScores)
Rows = Mapping[Metric, np.ndarray]
"""Metric → [pairs, columns]: the statistics behind the scores of one system."""


def scores_of(sums: Mapping[S, np.ndarray]) -> dict[str, np.ndarray]:
    """The scores of all metrics from their summed rows [..., columns]; NaN where one is undefined."""
    return {name: value for metric, part in sums.items() for name, value in metric.values(part).items()}


def existing(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The scores that are not NaN, as plain numbers."""
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above` / `below`; NaN where `below` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(above, below)

"""What a metric is: sums for each pair, and scores from summed rows.

Every score is a function of summed rows, so the same function gives the score of all pairs, of one pair, of a group of
pairs, and of a bootstrap resample (a weighted sum).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from onediff.errors import UserError

Images = Callable[[str], Any]
"""Gives the encoded images of a pair's id as an object with `before` and `after`, or None if it has none."""


class Unavailable(Exception):
    """A metric cannot be computed here; the message is one line for the user."""


@dataclass(frozen=True)
class Pairs:
    """The captions of one system and what they are held against, pair by pair in the same order."""

    ids: Sequence[str]
    captions: Sequence[str]
    """One of each pair, as the system wrote it."""
    references: Sequence[Sequence[str]]
    """Of each pair, as the protocol has them."""
    tokens: Sequence[str]
    """The captions in lower case, tokens joined by blanks, without punctuation."""
    reference_tokens: Sequence[Sequence[str]]
    """The references likewise."""
    tokenisation: str
    """How the tokens were made: `ptb`, or `plain` where Java was missing."""
    change_types: Sequence[str | None]
    """Of each pair, where it is known."""
    changes: Sequence[Mapping[str, Any] | None]
    """The change list of each pair's `meta`, where it is known."""
    read_type: Callable[[str], str | None] | None = None
    """The protocol's way to read a change type out of a caption."""
    images: Images | None = None
    """Gives the images of an id."""

    def subset(self, chosen: Sequence[int]) -> Pairs:
        """The pairs at these places."""
        columns = ("ids", "captions", "references", "tokens", "reference_tokens", "change_types", "changes")
        taken: dict[str, Any] = {name: [getattr(self, name)[i] for i in chosen] for name in columns}
        return replace(self, **taken)


class SummedScores(ABC):
    """Scores that are functions of rows summed over pairs."""

    scores: tuple[str, ...]
    """Their names, in the order of tables."""
    lower_is_better: tuple[str, ...] = ()
    """Those of them that are better when they are lower."""

    @abstractmethod
    def values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Summed rows [..., columns] → each of `scores` [...] as a fraction; NaN where it does not exist."""


class Metric(SummedScores):
    """A metric, or several that come from the same statistics. One object of it is shared by all evaluations."""

    name: ClassVar[str]
    """As `--metrics` has it."""
    shown: tuple[str, ...] = ()
    """The scores that the tables by change type and the cards of the report show."""
    blank: str = ""
    """Why one of `shown` may not exist for a group of pairs, in words."""
    ptb_only: bool = False
    """Whether it has no meaning for tokens made by the plain rule."""
    by_group: bool = False
    """Whether a row depends on the other pairs, so that a group of pairs needs rows of its own."""
    waits: bool = False
    """Whether it mostly waits for another program, and so is computed beside the others."""

    @abstractmethod
    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        """[pairs, columns] of each system. Raises Unavailable when it cannot be computed here."""

    def applies(self, pairs: Pairs) -> bool:
        """Whether these pairs have what it needs; where not, it is left out without a word."""
        return True

    def notes(self, sums: np.ndarray) -> list[str]:
        """What a reader of its scores must know, one line each."""
        return []

    def of_model(self, model: str) -> Metric:
        """The same metric by the model of that name; empty if none is named. Raises UserError when it takes none."""
        if model:
            raise UserError(f"metric {self.name!r} takes no model; write its name alone")
        return self


S = TypeVar("S", bound=SummedScores)
Rows = Mapping[Metric, np.ndarray]
"""Metric → [pairs, columns]: the statistics behind the scores of one system."""


def scores_of(sums: Mapping[S, np.ndarray]) -> dict[str, np.ndarray]:
    """The scores of all metrics from their summed rows [..., columns]; NaN where one does not exist."""
    return {name: value for metric, part in sums.items() for name, value in metric.values(part).items()}


def existing(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The scores that exist, as plain numbers."""
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above` / `below`, NaN where there is nothing below."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(above, below)

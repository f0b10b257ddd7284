"""Whether to believe a caption that tells a change: a model shown more noise or more movement of the camera than in training
invents changes, but then also finds it likelier that nothing has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onediff.evaluation.confidence.calibration import FEWEST


class ClaimedChanges(NamedTuple):
    """What is known about held-out pairs, `[pairs]` each."""

    nothing: NDArray[np.float64]
    """Log-probability of the sentences that nothing has changed; NaN if the caption is one of them."""
    unchanged: NDArray[np.bool_]
    right: NDArray[np.bool_]
    """Whether the caption is right."""

    @property
    def false_alarms(self) -> NDArray[np.bool_]:
        """Pairs on which nothing has changed, with another caption."""
        return self.unchanged & ~self.right & ~np.isnan(self.nothing)

    def of(self, pairs: NDArray[np.int64] | NDArray[np.bool_]) -> ClaimedChanges:
        """Some of the pairs."""
        return ClaimedChanges(self.nothing[pairs], self.unchanged[pairs], self.right[pairs])


class RefusalCounts(NamedTuple):
    """Counts before and after refusing, with each half of the pairs judged by the limit of the other."""

    pairs: int
    unchanged: int
    right: tuple[int, int]
    false_alarms: tuple[int, int]


@dataclass(frozen=True)
class RefusalLimit:
    """If the sentences that nothing has changed are likelier than the limit together, the first replaces the caption."""

    sentences: tuple[str, ...]
    """The most frequent captions of unchanged held-out pairs."""
    limit: float
    """A log-probability."""
    share: float
    """The share of right captions after a replacement."""
    tally: RefusalCounts

    @classmethod
    def of(cls, sentences: tuple[str, ...], claims: ClaimedChanges) -> RefusalLimit | None:
        """None if there are fewer than 10 false alarms, or if no more captions are right after refusing."""
        limit, tally = best_limit(claims), tallied(claims)
        if not sentences or claims.false_alarms.sum() < FEWEST or limit == np.inf or tally.right[1] <= tally.right[0]:
            return None
        replaced = claims.nothing > limit
        share = (int(claims.unchanged[replaced].sum()) + 1) / (int(replaced.sum()) + 2)
        return cls(sentences, limit, share, tally)

    def lines(self) -> list[str]:
        """The measurements as lines of text."""
        pairs, unchanged, right, alarms = self.tally
        return [
            f"answers {self.sentences[0]!r} if a caption tells a change that is not to be believed; on pairs that the limit "
            "was not chosen on:",
            f"false alarms  {alarms[0] / unchanged:6.1%} before, {alarms[1] / unchanged:6.1%} after, of {unchanged} pairs",
            f"captions right{right[0] / pairs:6.1%} before, {right[1] / pairs:6.1%} after, of {pairs} pairs",
        ]

    def as_json(self) -> dict[str, Any]:
        """The measurements as plain values."""
        return {
            "sentences": list(self.sentences),
            "limit": self.limit,
            "share_right": self.share,
            **self.tally._asdict(),
        }

    @classmethod
    def of_json(cls, kept: dict[str, Any] | None) -> RefusalLimit | None:
        """What `as_json` gave, if anything. Raises KeyError if something is missing."""
        if kept is None:
            return None
        right, alarms = (tuple(kept[name]) for name in ("right", "false_alarms"))
        tally = RefusalCounts(kept["pairs"], kept["unchanged"], right, alarms)
        return cls(tuple(kept["sentences"]), kept["limit"], kept["share_right"], tally)


def best_limit(claims: ClaimedChanges) -> float:
    """The limit that makes most captions right, or infinity if refusing makes none right."""
    told = claims.of(~np.isnan(claims.nothing))
    order = np.argsort(-told.nothing, kind="stable")
    gained = np.cumsum(told.unchanged[order].astype(int) - told.right[order].astype(int))
    if not len(gained) or gained.max() <= 0:
        return float("inf")
    last = int(gained.argmax())
    around = told.nothing[order][last : last + 2]
    return float(around.mean()) if len(around) == 2 else float(around[0]) - 1.0


def tallied(claims: ClaimedChanges) -> RefusalCounts:
    """What refusing does to pairs that its limit was not chosen on."""
    half = np.random.default_rng(0).permutation(len(claims.right)) % 2 == 0
    refused = np.empty(len(half), bool)
    for judged in (half, ~half):
        refused[judged] = claims.nothing[judged] > best_limit(claims.of(~judged))
    alarm = claims.false_alarms
    right_after = np.where(refused, claims.unchanged, claims.right)
    return RefusalCounts(
        len(half),
        int(claims.unchanged.sum()),
        (int(claims.right.sum()), int(right_after.sum())),
        (int(alarm.sum()), int((alarm & ~refused).sum())),
    )

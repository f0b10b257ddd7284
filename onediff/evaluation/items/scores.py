"""Item scores of a set of captions, with intervals and by change type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onediff.errors import UserError
from onediff.evaluation.items.agreement import COUNTED, judged
from onediff.evaluation.items.grammar import Reading, read, type_of
from onediff.evaluation.items.known import TrueChanges, known
from onediff.evaluation.metrics.metric import existing, ratio

# The columns of a row, followed by two per attribute: how often it is counted, how often it is right.
PAIRS, RIGHT, CHANGED, CHANGED_RIGHT, TRUE, FOUND, SAID, HALLUCINATED, UNCHANGED, FALSE_ALARM, MISSED, UNREAD = range(
    12
)
COLUMNS = 12 + 2 * len(COUNTED)

RATIOS = {
    "captions right": (RIGHT, PAIRS),
    "changed captions right": (CHANGED_RIGHT, CHANGED),
    "item recall": (FOUND, TRUE),
    "item precision": (FOUND, SAID),
    "hallucinated items": (HALLUCINATED, SAID),
    "false alarms": (FALSE_ALARM, UNCHANGED),
    "missed changes": (MISSED, CHANGED),
    "unread captions": (UNREAD, PAIRS),
    **{f"{name} right": (12 + 2 * i + 1, 12 + 2 * i) for i, name in enumerate(COUNTED)},
}
"""Score → (numerator, denominator), both sums over pairs; a score whose denominator is 0 is undefined."""
LOWER_IS_BETTER = ("hallucinated items", "false alarms", "missed changes", "unread captions")


@dataclass(frozen=True)
class ItemScores:
    """Scores by name, as fractions; see RATIOS and docs/evaluation.md."""

    values: Mapping[str, float]
    """Over all pairs, without scores that have nothing to count."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % bootstrap intervals over pairs; empty if none were requested."""
    by_type: Mapping[str, tuple[int, Mapping[str, float]]]
    """Change type → number of pairs, and scores; includes `several` and `none`."""
    ids: tuple[str, ...]
    """The pairs that were scored: those whose changes are known."""
    readings: Mapping[str, Reading] = field(repr=False)
    """What each caption was parsed into."""
    rows: np.ndarray = field(repr=False, compare=False)
    """[pairs, COLUMNS]: the counts behind the scores."""

    def is_right(self, pair: str) -> bool:
        """Whether the caption of this pair states every change and nothing else."""
        return bool(self.rows[self.ids.index(pair), RIGHT])


def score(
    captions: Mapping[str, str],
    references: Mapping[str, Mapping[str, Any] | TrueChanges],
    *,
    bootstrap: int = 0,
    seed: int = 0,
) -> ItemScores:
    """Scores `captions` (by id) against `references`: each pair's `meta`, or its `TrueChanges` changes.

    Pairs without a change list are skipped; `bootstrap` resamples give intervals. Raises UserError if no pair has both a
    caption and a change list.
    """
    from onediff.evaluation.metrics import metric  # it imports these scores as a metric
    from onediff.evaluation.resampling import intervals

    truths: dict[str, TrueChanges] = {}
    for pair, given in references.items():
        truth = given if isinstance(given, TrueChanges) else known(given, f"pair {pair!r}")
        if truth is not None and pair in captions:
            truths[pair] = truth
    if not truths:
        raise UserError("no pair has both a caption and a list of its changes (meta.changes); item scores need both")
    readings = {pair: read(captions[pair]) for pair in truths}
    rows = np.array([row(readings[pair], truth) for pair, truth in truths.items()], dtype=float)
    types = [type_of(truth.items) for truth in truths.values()]
    return ItemScores(
        values=existing(ratios(rows.sum(0))),
        intervals=intervals({metric("items"): rows}, bootstrap, seed) if bootstrap else {},
        by_type={
            kind: (types.count(kind), existing(ratios(rows[[one == kind for one in types]].sum(0))))
            for kind in sorted(set(types))
        },
        ids=tuple(truths),
        readings=readings,
        rows=rows,
    )


def row(reading: Reading, truth: TrueChanges) -> list[float]:
    """[COLUMNS] counts of one caption."""
    verdict = judged(reading, truth)
    changed = bool(truth.items)
    counts: list[float] = [0] * COLUMNS
    counts[PAIRS], counts[RIGHT] = 1, verdict.right
    counts[CHANGED], counts[CHANGED_RIGHT] = changed, changed and verdict.right
    counts[TRUE], counts[FOUND], counts[SAID] = len(truth.items), verdict.found, verdict.said
    counts[HALLUCINATED] = verdict.hallucinated
    counts[UNCHANGED], counts[FALSE_ALARM] = not changed, not changed and bool(reading.items)
    counts[MISSED], counts[UNREAD] = changed and reading.type == "none", bool(reading.unread)
    for i, name in enumerate(COUNTED):
        counts[12 + 2 * i : 14 + 2 * i] = verdict.attributes[name]
    return counts


def ratios(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Summed rows [..., COLUMNS] → each score [...]; NaN where there is nothing to count."""
    return {name: ratio(sums[..., top], sums[..., bottom]) for name, (top, bottom) in RATIOS.items()}

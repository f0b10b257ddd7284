"""Scores of captions against references: corpus, per pair, per change type, with intervals. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onediff.errors import UserError
from onediff.evaluation.items import ItemScores
from onediff.evaluation.items import score as score_items
from onediff.evaluation.items.scores import RIGHT
from onediff.evaluation.protocols import Protocol
from onediff.evaluation.protocols import protocol as protocol_named
from onediff.evaluation.protocols.protocol import digest
from onediff.evaluation.resampling import Difference, differences, intervals
from onediff.evaluation.statistics import (
    CIDER,
    CIDER_PLAIN,
    METRICS,
    TYPE_ACCURACY,
    TYPE_RIGHT,
    TYPED,
    Statistics,
    cider_columns,
    collect,
    corpus_scores,
)
from onediff.evaluation.tokenisation import tokenised


@dataclass(frozen=True)
class Scores:
    """What `score` found. Fractions; CIDEr's range is 0…10 (papers print all of them times 100)."""

    protocol: str
    """The rules they were computed under."""
    tokenisation: str
    """`ptb`, or `plain` where Java was missing: then no number is comparable with published ones."""
    ids: tuple[str, ...]
    """The pairs that were scored."""
    scores: Mapping[str, float]
    """Metric → corpus score; METEOR is absent where Java was missing."""
    intervals: Mapping[str, tuple[float, float]]
    """Metric → 95 % bootstrap interval; empty where none was asked for."""
    groups: Mapping[str, tuple[int, Mapping[str, float]]]
    """Change type, or group of types → pairs and scores, each as a corpus of its own."""
    missing: tuple[str, ...]
    """Pairs without a prediction, which were left out on request."""
    notes: tuple[str, ...]
    """What a reader must know: one line each."""
    references: str
    """Fingerprint of the references."""
    rows: np.ndarray = field(repr=False, compare=False)
    """[pairs, columns]: the statistics behind the scores, in the order of `ids`."""
    items: ItemScores | None = None
    """What the captions say beside the changes that are known; None where none are. Its scores are among `scores`."""

    def per_pair(self) -> dict[str, dict[str, float]]:
        """Id → metric → score of that pair alone."""
        columns = corpus_scores(self.rows)
        found = {pair: {name: float(column[i]) for name, column in columns.items()} for i, pair in enumerate(self.ids)}
        if self.items is not None:
            for pair, row in zip(self.items.ids, self.items.rows, strict=True):
                found[pair] = {"captions right": float(row[RIGHT]), **found[pair]}
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`; a metric that could not be computed is null."""
        return {
            "protocol": self.protocol,
            "tokenisation": self.tokenisation,
            "references": self.references,
            "pairs": len(self.ids),
            "scores": {**self.scores, **{name: None for name in METRICS if name not in self.scores}},
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "change_types": {name: {"pairs": n, "scores": dict(scores)} for name, (n, scores) in self.groups.items()},
            "missing": list(self.missing),
            "notes": list(self.notes),
            "per_pair": self.per_pair(),
        }


def score(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    protocol: str | Protocol = "plain",
    *,
    change_types: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    meteor: bool = True,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Scores:
    """Scores `predictions` (id → caption) against `references` (id → captions) under a protocol, given or named.

    `change_types` (id → type) adds a breakdown, and the share of right types where the protocol can read them from a
    caption. `changes` (id → a sample's `meta`) adds item scores. `bootstrap` resamples give 95 % intervals.
    `meteor=False` spares a Java start of some seconds.
    Raises UserError for a prediction with an unknown id and, unless `allow_missing`, for a pair without prediction.
    """
    rules = protocol_named(protocol) if isinstance(protocol, str) else protocol
    return score_all(references, [predictions], rules, change_types, allow_missing, bootstrap, seed, meteor, changes)[0]


def score_all(
    references: Mapping[str, Sequence[str]],
    systems: Sequence[Mapping[str, str]],
    rules: Protocol,
    change_types: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    meteor: bool = True,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Scores]:
    """`score` for several systems on the same pairs (those that all of them answered), tokenised in one go."""
    counted = rules.treated(references)
    missing = unanswered(counted, references, systems, allow_missing)
    texts = {pair: captions for pair, captions in counted.items() if pair not in missing}
    if not texts:
        raise UserError("no pair to score: no id is in both the references and the predictions")
    captions = [caption for group in texts.values() for caption in group]
    tokens, tokenisation, reason = tokenised(captions + [system[pair] for system in systems for pair in texts])
    answers = [[tokens[system[pair]] for pair in texts] for system in systems]
    theirs = [[tokens[caption] for caption in group] for group in texts.values()]
    types = {pair: kind for pair, kind in (change_types or {}).items() if pair in texts}
    found = []
    for system, mine, statistics in zip(systems, answers, collect(answers, theirs, tokenisation, meteor), strict=True):
        mark_types(statistics.rows, {pair: system[pair] for pair in texts}, types, rules)
        items, fault = item_scores(system, {pair: (changes or {}).get(pair, {}) for pair in texts}, bootstrap, seed)
        groups = grouped(statistics.rows, mine, theirs, [types.get(pair) for pair in texts], rules)
        if items is not None:
            groups = {
                name: (n, {**items.by_type.get(name, (0, {}))[1], **scores}) for name, (n, scores) in groups.items()
            }
        found.append(
            Scores(
                protocol=rules.name,
                tokenisation=tokenisation,
                ids=tuple(texts),
                scores={
                    **(items.values if items else {}),
                    **{name: float(value) for name, value in corpus_scores(statistics.rows.sum(0)).items()},
                },
                intervals={
                    **(items.intervals if items else {}),
                    **(intervals(statistics.rows, bootstrap, seed) if bootstrap else {}),
                },
                groups=groups,
                missing=missing,
                notes=notes(reason, statistics, missing, len(counted)) + fault,
                references=digest(counted),
                rows=statistics.rows,
                items=items,
            )
        )
    return found


def compare(ours: Scores, other: Scores, resamples: int = 1000, seed: int = 0) -> dict[str, Difference]:
    """Metric → difference and its two-sided p by paired randomisation. Refuses what is not comparable (UserError)."""
    require_comparable(ours, other)
    return differences(ours.rows, other.rows, resamples, seed)


def require_comparable(ours: Scores, other: Scores) -> None:
    """Raises UserError unless both were computed under the same rules, for the same pairs."""
    for what in ("protocol", "tokenisation", "references", "ids"):
        mine, theirs = getattr(ours, what), getattr(other, what)
        if mine != theirs:
            shown = f" ({mine} and {theirs})" if what in ("protocol", "tokenisation") else ""
            raise UserError(f"scores of different {what}{shown} cannot be compared; score both the same way")


def unanswered(
    counted: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    systems: Iterable[Mapping[str, str]],
    allow_missing: bool,
) -> tuple[str, ...]:
    """The pairs that count and that some system has no caption for."""
    missing: dict[str, None] = {}
    for system in systems:
        unknown = [pair for pair in system if pair not in references]
        if unknown:
            raise UserError(f"predictions: {_some(unknown)} not among the references; remove it or fix the id")
        missing |= dict.fromkeys(pair for pair in counted if pair not in system)
    if missing and not allow_missing:
        raise UserError(
            f"predictions: no caption for {_some(list(missing))}; --allow-missing scores the pairs that are there"
        )
    return tuple(missing)


def mark_types(rows: np.ndarray, answers: Mapping[str, str], types: Mapping[str, str], rules: Protocol) -> None:
    """Fills in whether each answer tells the pair's change type, where the protocol can read that."""
    if rules.read_type is not None:
        for row, (pair, answer) in zip(rows, answers.items(), strict=True):
            if pair in types:
                row[TYPED] = 1
                row[TYPE_RIGHT] = rules.read_type(answer) == types[pair]


def item_scores(
    answers: Mapping[str, str], changes: Mapping[str, Mapping[str, Any]], bootstrap: int, seed: int
) -> tuple[ItemScores | None, tuple[str, ...]]:
    """Item scores where any change list is known; a list that cannot be read is a note, and there are no item scores."""
    if not any("changes" in meta for meta in changes.values()):
        return None, ()
    try:
        return score_items(answers, changes, bootstrap=bootstrap, seed=seed), ()
    except UserError as error:
        return None, (f"item scores are left out: {error}",)


def grouped(
    rows: np.ndarray,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    types: Sequence[str | None],
    rules: Protocol,
) -> dict[str, tuple[int, dict[str, float]]]:
    """Change type, or group of types → pairs and scores. CIDEr's document frequencies are the group's own, as if only
    its pairs had been scored, which is how published tables per type are made."""
    members = {kind: {kind} for kind in sorted({kind for kind in types if kind is not None})}
    wanted = {name: set(kinds) for name, kinds in rules.groups.items()} | members
    found = {}
    for name, kinds in wanted.items():
        chosen = [i for i, kind in enumerate(types) if kind in kinds]
        if chosen:
            own = rows[chosen].copy()
            own[:, [CIDER, CIDER_PLAIN]] = cider_columns(
                [predictions[i] for i in chosen], [references[i] for i in chosen]
            )
            found[name] = len(chosen), {metric: float(value) for metric, value in corpus_scores(own.sum(0)).items()}
    return found


def notes(reason: str | None, statistics: Statistics, missing: Sequence[str], counted: int) -> tuple[str, ...]:
    """One line for each thing that limits what the numbers mean."""
    lines = []
    if reason is not None:
        lines.append(f"{reason}. METEOR is left out and tokens come from a plain rule: not comparable with published")
    if statistics.missing is not None:
        lines.append(f"METEOR is left out: {statistics.missing}")
    if missing:
        lines.append(f"{len(missing)} of {counted} pairs have no caption and are left out: {_some(missing)}")
    return tuple(lines)


def _some(ids: Sequence[str]) -> str:
    """The first of `ids`, and how many more there are."""
    return f"id {ids[0]!r}" + (f" (and {len(ids) - 1} more)" if len(ids) > 1 else "")


__all__ = ["METRICS", "TYPE_ACCURACY", "Scores", "compare", "require_comparable", "score", "score_all"]

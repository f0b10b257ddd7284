"""Scores of captions against references: corpus, per pair, per change type, with intervals. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onediff.errors import UserError
from onediff.evaluation.files import Predictions, References
from onediff.evaluation.metrics import Metric, Pairs, Rows, Unavailable, chosen, scores_of
from onediff.evaluation.metrics.metric import Images, existing
from onediff.evaluation.protocols import Protocol
from onediff.evaluation.protocols import protocol as protocol_named
from onediff.evaluation.protocols.protocol import digest
from onediff.evaluation.resampling import Difference, differences, intervals
from onediff.evaluation.tokenisation import PTB, tokenised


@dataclass(frozen=True)
class Scores:
    """What `score` found. Fractions; CIDEr's range is 0…10 (papers print all of them times 100)."""

    protocol: str
    """The rules under which they were computed."""
    tokenisation: str
    """`ptb`, or `plain` if Java was missing: then no score is comparable with published ones."""
    ids: tuple[str, ...]
    """The pairs that were scored."""
    scores: Mapping[str, float]
    """Name → corpus score, in the order of tables, without scores that are undefined or could not be computed."""
    intervals: Mapping[str, tuple[float, float]]
    """Name → 95 % bootstrap interval; empty if none was requested."""
    groups: Mapping[str, tuple[int, Mapping[str, float]]]
    """Change type or group of types → number of pairs, and scores as a corpus of its own."""
    missing: tuple[str, ...]
    """Pairs without a prediction, which were left out on request."""
    notes: tuple[str, ...]
    """What a reader must know, one line each."""
    references: str
    """Fingerprint of the references."""
    absent: tuple[str, ...]
    """Scores that were requested but are missing."""
    rows: Rows = field(repr=False, compare=False)
    """Metric → [pairs, columns]: the statistics behind the scores, in the order of `ids`."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The scores that tables by change type and the cards of the report show."""
        return tuple(name for metric in self.rows for name in metric.shown if name in self.scores)

    @property
    def lower_is_better(self) -> frozenset[str]:
        """The scores that are better when they are lower."""
        return frozenset(name for metric in self.rows for name in metric.lower_is_better)

    def per_pair(self) -> dict[str, dict[str, float]]:
        """Id → name → score of that pair alone, without scores that are undefined for it."""
        columns = scores_of(self.rows)
        return {
            pair: existing({name: column[i] for name, column in columns.items()}) for i, pair in enumerate(self.ids)
        }

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`; a requested score that is missing is null."""
        return {
            "protocol": self.protocol,
            "tokenisation": self.tokenisation,
            "references": self.references,
            "pairs": len(self.ids),
            "scores": {**self.scores, **dict.fromkeys(self.absent)},
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
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    allow_missing: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    meteor: bool = True,
    metrics: Sequence[str] = (),
    images: Images | None = None,
) -> Scores:
    """Scores `predictions` (id → caption) against `references` (id → captions) under a protocol, given or named.

    `change_types` (id → type) adds a breakdown, and the share of right types if the protocol can read them from a
    caption. `changes` (id → a sample's `meta`) adds item scores. `metrics` are computed in addition to the usual ones, with
    `images` if they need them. `bootstrap` resamples give 95 % intervals. `meteor=False` saves the few seconds that Java
    takes to start. Raises UserError for a prediction with an unknown id and, unless `allow_missing`, for a pair without one.
    """
    rules = protocol_named(protocol) if isinstance(protocol, str) else protocol
    given = References(references, change_types or {}, changes or {})
    asked = chosen(metrics, without=() if meteor else ("meteor",))
    return score_all(given, [predictions], rules, asked, allow_missing, bootstrap, seed, images)[0]


def score_all(
    references: References,
    systems: Sequence[Mapping[str, str]],
    rules: Protocol,
    metrics: Sequence[Metric] | None = None,
    allow_missing: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    images: Images | None = None,
) -> list[Scores]:
    """`score` for several systems on the same pairs (those that all of them answered), tokenised together."""
    counted = rules.treated(references.captions, references.where)
    missing = unanswered(counted, references, systems, allow_missing)
    texts = {pair: captions for pair, captions in counted.items() if pair not in missing}
    if not texts:
        raise UserError("no pair to score: no id is in both the references and the predictions")
    given, why_plain = paired(texts, references, systems, rules, images)
    rows, unavailable = collect(given, chosen() if metrics is None else metrics)
    found = []
    for mine, part in zip(given, rows, strict=True):
        sums = {metric: one.sum(0) for metric, one in part.items()}
        scores = existing(scores_of(sums))
        names = [name for metric in (*part, *unavailable) for name in metric.scores]
        lines = [line for metric, one in sums.items() for line in metric.notes(one)]
        groups = grouped(part, mine, rules)
        lines += [
            f"{name} of {group} is left blank: {metric.blank}"
            for metric in part
            for name in metric.shown
            for group, (_, own) in groups.items()
            if metric.blank and name in scores and name not in own
        ]
        found.append(
            Scores(
                protocol=rules.name,
                tokenisation=mine.tokenisation,
                ids=tuple(texts),
                scores=scores,
                intervals=intervals(part, bootstrap, seed) if bootstrap else {},
                groups=groups,
                missing=missing,
                notes=(*notes(why_plain, unavailable, missing, len(counted)), *lines),
                references=digest(counted),
                absent=tuple(name for name in names if name not in scores),
                rows=part,
            )
        )
    return found


def paired(
    texts: Mapping[str, Sequence[str]],
    references: References,
    systems: Sequence[Mapping[str, str]],
    rules: Protocol,
    images: Images | None,
) -> tuple[list[Pairs], str | None]:
    """What metrics use, for each system; and the reason if the tokens are not those of published scores."""
    captions = [caption for group in texts.values() for caption in group]
    tokens, tokenisation, reason = tokenised(captions + [system[pair] for system in systems for pair in texts])
    theirs = [[tokens[caption] for caption in group] for group in texts.values()]
    given = [
        Pairs(
            ids=list(texts),
            captions=[system[pair] for pair in texts],
            references=list(texts.values()),
            tokens=[tokens[system[pair]] for pair in texts],
            reference_tokens=theirs,
            tokenisation=tokenisation,
            change_types=[references.change_types.get(pair) for pair in texts],
            changes=[references.changes.get(pair) for pair in texts],
            read_type=rules.read_type,
            images=images,
        )
        for system in systems
    ]
    return given, reason


def collect(
    systems: Sequence[Pairs], metrics: Sequence[Metric]
) -> tuple[list[dict[Metric, np.ndarray]], dict[Metric, str]]:
    """The rows of each system by metric, and the metrics that cannot be computed here with the reason.

    Metrics that wait for other programs are started first and run in parallel with the rest.
    """
    wanted = [metric for metric in metrics if metric.applies(systems[0])]
    unavailable = {metric: "" for metric in wanted if metric.ptb_only and systems[0].tokenisation != PTB}
    found: dict[Metric, list[np.ndarray]] = {}
    with ThreadPoolExecutor() as beside:
        waiting: dict[Metric, Future[list[np.ndarray]]] = {
            metric: beside.submit(metric.rows, systems)
            for metric in wanted
            if metric.waits and metric not in unavailable
        }
        for metric in wanted:
            if metric not in unavailable and metric not in waiting:
                _try(metric, lambda metric=metric: metric.rows(systems), found, unavailable)
        for metric, future in waiting.items():
            _try(metric, future.result, found, unavailable)
    ordered = [metric for metric in wanted if metric in found]
    return [{metric: found[metric][i] for metric in ordered} for i in range(len(systems))], unavailable


def _try(metric: Metric, rows: Any, found: dict[Metric, list[np.ndarray]], unavailable: dict[Metric, str]) -> None:
    try:
        found[metric] = rows()
    except Unavailable as error:
        unavailable[metric] = str(error)


def grouped(rows: Rows, pairs: Pairs, rules: Protocol) -> dict[str, tuple[int, dict[str, float]]]:
    """Change type or group of types → number of pairs, and scores. CIDEr's document frequencies are the group's own, as
    if only its pairs had been scored: published tables per type are made this way."""
    members = {kind: {kind} for kind in sorted({kind for kind in pairs.change_types if kind is not None})}
    wanted = {name: set(kinds) for name, kinds in rules.groups.items()} | members
    found = {}
    for name, kinds in wanted.items():
        places = [i for i, kind in enumerate(pairs.change_types) if kind in kinds]
        if places:
            subset = pairs.subset(places)
            own = {m: m.rows([subset])[0] if m.by_group else part[places] for m, part in rows.items()}
            found[name] = len(places), existing(scores_of({metric: part.sum(0) for metric, part in own.items()}))
    return found


def compare(ours: Scores, other: Scores, resamples: int = 1000, seed: int = 0) -> dict[str, Difference]:
    """Name → difference and its two-sided p by paired randomisation. Raises UserError if not comparable."""
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
    counted: Collection[str], references: References, systems: Iterable[Mapping[str, str]], allow_missing: bool
) -> tuple[str, ...]:
    """The pairs in `counted` for which some system has no caption. Raises UserError unless `allow_missing`."""
    missing: dict[str, None] = {}
    for system in systems:
        where = system.where if isinstance(system, Predictions) else Predictions.where
        unknown = [pair for pair in system if pair not in references.captions]
        if unknown:
            among = "the references" if references.where == "references" else f"the references in {references.where}"
            raise UserError(f"{where}: {_some(unknown)} not among {among}; remove it or fix the id")
        absent = [pair for pair in counted if pair not in system]
        if absent and not allow_missing:
            raise UserError(f"{where}: no caption for {_some(absent)}; --allow-missing scores the other pairs")
        missing |= dict.fromkeys(absent)
    return tuple(missing)


def notes(
    why_plain: str | None, unavailable: Mapping[Metric, str], missing: Sequence[str], counted: int
) -> tuple[str, ...]:
    """One line for each limitation of the scores."""
    lines = []
    if why_plain is not None:
        left_out = "".join(f"{', '.join(metric.scores)} is left out and " for metric in unavailable if metric.ptb_only)
        lines.append(f"{why_plain}. {left_out}tokens come from a plain rule: not comparable with published scores")
    lines += [f"{', '.join(metric.scores)}: left out, {why}" for metric, why in unavailable.items() if why]
    if missing:
        lines.append(f"{len(missing)} of {counted} pairs have no caption and are left out: {_some(missing)}")
    return tuple(lines)


def _some(ids: Sequence[str]) -> str:
    """The first of `ids`, and the number of others."""
    return f"id {ids[0]!r}" + (f" (and {len(ids) - 1} more)" if len(ids) > 1 else "")

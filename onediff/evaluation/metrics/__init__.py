"""Metrics, found by name: `metric("cider")`.

A metric is a `Metric` object: one row of sums per pair, and a function from summed rows to scores. The columns of tables,
of the report and of MLflow follow from it. Another package adds one with an entry point in the group `onediff.metrics`,
`name = module:METRIC` (docs/extending.md has a worked example).
"""

from __future__ import annotations

from collections.abc import Sequence

from onediff.config.plugins import METRICS
from onediff.errors import UserError
from onediff.evaluation.metrics.metric import Metric, Pairs, Rows, Unavailable, scores_of

USUAL = ("items", "bleu", "meteor", "rouge", "cider", "change-type")
"""Computed in every evaluation, in the order of tables. Others need a model, or Java with models of its own."""


def metric(name: str) -> Metric:
    """The metric of that name, or NAME:MODEL for one that takes a model. Raises UserError with the nearest known name."""
    base, _, model = name.partition(":")
    found = METRICS.load(base)
    if not isinstance(found, Metric):
        raise UserError(f"metric {base!r}: {METRICS.points()[base].value} is not an onediff.evaluation.metrics.Metric")
    return found.of_model(model)


def chosen(more: Sequence[str] = (), without: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The usual metrics except `without`, then `more` in their order. Raises UserError for an unknown name."""
    return tuple(metric(name) for name in dict.fromkeys((*USUAL, *more)) if name not in without)


__all__ = ["Metric", "Pairs", "Rows", "Unavailable", "chosen", "metric", "scores_of"]

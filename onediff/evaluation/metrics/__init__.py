"""Metrics, found by name: `metric("cider")`.

A metric is a `Metric` object: one row of sums per pair, and a function from summed rows to scores. The columns of tables,
of the report and of MLflow follow from it. Another package adds one with an entry point in the group `onediff.metrics`,
`name = module:METRIC` (docs/extending.md has a worked example).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points

from onediff.config.entry_points import load
from onediff.config.section import nearest
from onediff.errors import UserError
from onediff.evaluation.metrics.metric import Metric, Pairs, Rows, Unavailable, scores_of

USUAL = ("items", "bleu", "meteor", "rouge", "cider", "change-type")
"""Computed in every evaluation, in the order of tables."""
OPTIONAL = ("spice", "bertscore", "clipscore", "pacscore")
"""Computed only on request: they need a model, or Java with models of its own."""
GROUP = "onediff.metrics"


def metric(name: str) -> Metric:
    """The metric of that name, or NAME:MODEL for one that takes a model. Raises UserError listing the known names."""
    base, _, model = name.partition(":")
    if base in (*USUAL, *OPTIONAL):
        found = importlib.import_module(f"{__name__}.{base.replace('-', '_')}").METRIC
    else:
        points = [point for point in entry_points(group=GROUP) if point.name == base]
        if not points:
            raise UserError(f"no metric {base!r}{nearest(base, names())}; there are {', '.join(names())}")
        found = load(points[0], "metric")
        if not isinstance(found, Metric):
            raise UserError(f"metric {base!r}: {points[0].value} is not an onediff.evaluation.metrics.Metric")
    assert isinstance(found, Metric)
    return found.of_model(model)


def names() -> list[str]:
    """All names; those of other packages come last."""
    others = {point.name for point in entry_points(group=GROUP)} - {*USUAL, *OPTIONAL}
    return [*USUAL, *OPTIONAL, *sorted(others)]


def chosen(more: Sequence[str] = (), without: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The usual metrics except `without`, then `more` in their order. Raises UserError for an unknown name."""
    return tuple(metric(name) for name in dict.fromkeys((*USUAL, *more)) if name not in without)


def score_names(more: Sequence[str] = ()) -> tuple[str, ...]:
    """The scores that the usual metrics and `more` can give."""
    return tuple(name for one in chosen(more) for name in one.scores)


__all__ = ["Metric", "Pairs", "Rows", "Unavailable", "chosen", "metric", "names", "score_names", "scores_of"]

"""Item scores as a metric: what captions say, compared with the known changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onediff.errors import UserError
from onediff.evaluation.items import known, read
from onediff.evaluation.items.scores import COLUMNS, LOWER_IS_BETTER, RATIOS, ratios, row
from onediff.evaluation.metrics.metric import Metric, Pairs, Unavailable


class Items(Metric):
    """See `onediff.evaluation.items`; pairs without a change list are ignored."""

    name = "items"
    scores = tuple(RATIOS)
    shown = ("captions right",)
    lower_is_better = LOWER_IS_BETTER

    def applies(self, pairs: Pairs) -> bool:
        return any(meta and "changes" in meta for meta in pairs.changes)

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        try:
            truths = [
                known(m or {}, f"pair {pair!r}") for pair, m in zip(systems[0].ids, systems[0].changes, strict=True)
            ]
        except UserError as error:
            raise Unavailable(str(error)) from None
        return [
            np.array(
                [
                    row(read(text), truth) if truth is not None else [0] * COLUMNS
                    for text, truth in zip(one.captions, truths, strict=True)
                ],
                dtype=float,
            )
            for one in systems
        ]

    def values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return ratios(sums)


METRIC = Items()

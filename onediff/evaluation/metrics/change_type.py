"""The share of captions that state the pair's change type, if it can be read from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onediff.evaluation.metrics.metric import Metric, Pairs


class ChangeType(Metric):
    """`several` is a type of its own; a caption whose type cannot be read is wrong."""

    name = "change-type"
    scores = shown = ("change type",)

    def applies(self, pairs: Pairs) -> bool:
        return pairs.read_type is not None and any(pairs.change_types)

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        return [
            np.array([counts(one, text, kind) for text, kind in zip(one.captions, one.change_types, strict=True)])
            for one in systems
        ]


def counts(pairs: Pairs, caption: str, kind: str | None) -> list[float]:
    """Whether the pair's type is known, and whether the caption states it."""
    assert pairs.read_type is not None
    return [0.0, 0.0] if kind is None else [1.0, float(pairs.read_type(caption) == kind)]


METRIC = ChangeType()

"""pycocoevalcap's CIDEr, which is CIDEr-D, and the original without clipping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onediff.evaluation.cider import Cider
from onediff.evaluation.metrics.metric import Metric, Pairs, ratio

PAIRS, CLIPPED, PLAIN, WEIGHTED = range(4)


class CiderMetric(Metric):
    """Similarity of n-grams, each weighted by how few pairs have it in their references; 0…10.

    If all pairs have the same references (or there is a single pair), all weights are 0 and CIDEr is undefined.
    """

    name = "cider"
    scores = ("CIDEr", "CIDEr-D", "CIDEr-plain")
    shown = ("CIDEr",)
    blank = "its references do not differ from pair to pair, and CIDEr weighs words by how few pairs have them"
    by_group = True

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        return [cider_rows(one.tokens, one.reference_tokens) for one in systems]

    def values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        pairs = np.where(sums[..., WEIGHTED] > 0, sums[..., PAIRS], 0)
        clipped, plain = (ratio(sums[..., column], pairs) for column in (CLIPPED, PLAIN))
        return {"CIDEr": clipped, "CIDEr-D": clipped, "CIDEr-plain": plain}

    def notes(self, sums: np.ndarray) -> list[str]:
        if sums[WEIGHTED] > 0:
            return []
        what = "there is one pair" if sums[PAIRS] == 1 else "all pairs have the same references"
        return [f"CIDEr is undefined here: it weighs words by how few pairs have them, and {what}"]


def cider_rows(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """[pairs, 4]: 1, CIDEr, plain CIDEr, and whether any word of the pair's references has a weight.

    Document frequencies are those of these references.
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for prediction, texts in zip(predictions, references, strict=True):
        scorer += (prediction, texts)
    # Its sanity check needs a largest document frequency, which empty references do not have.
    clipped = scorer.compute_score()[1] if any(map(any, references)) else np.zeros(len(predictions))
    cider = Cider(references)
    rows = []
    for prediction, texts, value in zip(predictions, references, clipped, strict=True):
        caption, theirs = cider.vector(prediction), [cider.vector(text) for text in texts]
        plain = sum(cider.similarity(caption, vector, clipped=False) for vector in theirs) / len(texts)
        rows.append([1, float(value), plain, any(any(vector.norms) for vector in theirs)])
    return np.array(rows, dtype=float)


METRIC = CiderMetric()

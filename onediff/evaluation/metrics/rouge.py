"""ROUGE-L as pycocoevalcap computes it: the mean over pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onediff.evaluation.metrics.metric import Metric, Pairs


class RougeL(Metric):
    """F with β = 1.2 of the longest common subsequence, from the best precision and recall among the references."""

    name = "rouge"
    scores = shown = ("ROUGE-L",)

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        from pycocoevalcap.rouge.rouge import Rouge

        one = Rouge()
        return [
            np.array(
                [[1, one.calc_score([text], texts)] for text, texts in zip(s.tokens, s.reference_tokens, strict=True)]
            )
            for s in systems
        ]


METRIC = RougeL()

"""Corpus BLEU-1…4 with the closest reference length, in pycocoevalcap's arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onediff.evaluation.metrics.metric import Metric, Pairs

LENGTH, REFERENCE_LENGTH = 0, 1
GUESSED, CORRECT = slice(2, 6), slice(6, 10)


class Bleu(Metric):
    """Precision of n-grams, with a penalty for captions shorter than the references."""

    name = "bleu"
    scores = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
    shown = ("BLEU-4",)

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        return [
            np.array([counts(*pair) for pair in zip(one.tokens, one.reference_tokens, strict=True)]) for one in systems
        ]

    def values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        small, tiny = 1e-9, 1e-15  # pycocoevalcap's
        precision = np.cumprod((sums[..., CORRECT] + tiny) / (sums[..., GUESSED] + small), axis=-1)
        relative = (sums[..., LENGTH] + tiny) / (sums[..., REFERENCE_LENGTH] + small)
        # Clipped from below to avoid an overflow in exp; the factor is 0 well before.
        brevity = np.exp(np.minimum(0, 1 - 1 / np.maximum(relative, 1e-3)))
        return {name: precision[..., n] ** (1 / (n + 1)) * brevity for n, name in enumerate(self.scores)}


def counts(prediction: str, references: Sequence[str]) -> list[float]:
    """[10]: lengths of the caption and of the closest reference, n-grams in the caption, n-grams matched."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(prediction, references)  # a new one per pair, because it keeps all n-grams that it has seen
    found, (lengths, _) = scorer.ctest[-1], scorer.crefs[-1]
    closest = min((abs(length - found["testlen"]), length) for length in lengths)[1]
    return [found["testlen"], closest, *found["guess"], *found["correct"]]


METRIC = Bleu()

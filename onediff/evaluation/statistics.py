"""What every score is computed from: one row of sums for each pair.

A corpus score is a function of summed rows. So the same function gives the score of all pairs, of one pair, of a group
of pairs, and of a bootstrap resample (a weighted sum). Rows come from pycocoevalcap's scorers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onediff.evaluation import meteor
from onediff.evaluation.cider import Cider
from onediff.evaluation.java import JavaUnavailable
from onediff.evaluation.tokenisation import PTB

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "CIDEr-D", "CIDEr-plain")
TYPE_ACCURACY = "change type"

# The columns of a row.
COUNT, ROUGE, CIDER, CIDER_PLAIN, TYPED, TYPE_RIGHT, LENGTH, REFERENCE_LENGTH = range(8)
GUESSED = slice(8, 12)
CORRECT = slice(12, 16)
METEOR = slice(16, 16 + meteor.COLUMNS)


class Statistics(NamedTuple):
    """`rows` [pairs, columns]; METEOR's columns are absent where Java is missing, and `missing` says why."""

    rows: np.ndarray
    missing: str | None


def collect(
    systems: Sequence[Sequence[str]], references: Sequence[Sequence[str]], tokenisation: str, with_meteor: bool = True
) -> list[Statistics]:
    """Statistics of each system's tokenised captions. One Java program of METEOR works beside the rest for all."""
    if tokenisation != PTB or not with_meteor:
        return [Statistics(_java_free(system, references), None) for system in systems]
    found: list[np.ndarray] = []
    try:
        captions = [caption for system in systems for caption in system]
        with meteor.meteor_program(captions, [*references] * len(systems)) as program:
            found = [_java_free(system, references) for system in systems]
            parts = np.split(meteor.meteor_statistics(program), len(systems))
            return [Statistics(np.hstack([rows, part]), None) for rows, part in zip(found, parts, strict=True)]
    except JavaUnavailable as error:
        found = found or [_java_free(system, references) for system in systems]
        return [Statistics(rows, str(error)) for rows in found]


def corpus_scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Summed rows [..., columns] → each metric [...], as fractions (CIDEr's range is 0…10)."""
    scores = dict(zip(METRICS[:4], _bleu(sums), strict=True))
    if sums.shape[-1] > METEOR.start:
        scores["METEOR"] = meteor.meteor(sums[..., METEOR])
    pairs = sums[..., COUNT]
    scores["ROUGE-L"] = sums[..., ROUGE] / pairs
    scores["CIDEr"] = scores["CIDEr-D"] = sums[..., CIDER] / pairs
    scores["CIDEr-plain"] = sums[..., CIDER_PLAIN] / pairs
    if np.all(sums[..., TYPED] > 0):
        scores[TYPE_ACCURACY] = sums[..., TYPE_RIGHT] / sums[..., TYPED]
    return scores


def cider_columns(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """[pairs, 2]: pycocoevalcap's CIDEr and the plain one; document frequencies are those of these references."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for prediction, texts in zip(predictions, references, strict=True):
        scorer += (prediction, texts)
    # Its own sanity check asks for the largest document frequency, which empty references do not have.
    clipped = scorer.compute_score()[1] if any(map(any, references)) else np.zeros(len(predictions))
    cider = Cider(references)
    plain = []
    for prediction, texts in zip(predictions, references, strict=True):
        vector = cider.vector(prediction)
        plain.append(sum(cider.similarity(vector, cider.vector(text), clipped=False) for text in texts) / len(texts))
    return np.column_stack([clipped, plain])


def _java_free(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """[pairs, 16]: all columns but METEOR's."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.rouge.rouge import Rouge

    rows = np.zeros((len(predictions), METEOR.start))
    rows[:, COUNT] = 1
    rows[:, [CIDER, CIDER_PLAIN]] = cider_columns(predictions, references)
    rouge = Rouge()
    for row, prediction, texts in zip(rows, predictions, references, strict=True):
        row[ROUGE] = rouge.calc_score([prediction], texts)
        bleu = BleuScorer(prediction, texts)  # one for each pair: it keeps all n-grams that it has seen
        counts, (lengths, _) = bleu.ctest[-1], bleu.crefs[-1]
        row[LENGTH] = counts["testlen"]
        row[REFERENCE_LENGTH] = min((abs(length - counts["testlen"]), length) for length in lengths)[1]
        row[GUESSED], row[CORRECT] = counts["guess"], counts["correct"]
    return rows


def _bleu(sums: np.ndarray) -> list[np.ndarray]:
    """BLEU-1…4 with the closest reference length, in pycocoevalcap's arithmetic (its small numbers included)."""
    small, tiny = 1e-9, 1e-15
    precision = np.cumprod((sums[..., CORRECT] + tiny) / (sums[..., GUESSED] + small), axis=-1)
    ratio = (sums[..., LENGTH] + tiny) / (sums[..., REFERENCE_LENGTH] + small)
    # Clipped from below to keep exp quiet: the factor is 0 long before.
    brevity = np.exp(np.minimum(0, 1 - 1 / np.maximum(ratio, 1e-3)))
    return [precision[..., n] ** (1 / (n + 1)) * brevity for n in range(4)]

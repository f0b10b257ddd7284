"""CIDEr as vectors, as the search for the best constant caption and the unclipped variant need it.

The `CIDEr` of published change captioning is pycocoevalcap's, which computes CIDEr-D: clipped, with a penalty on the
difference in length. The original CIDEr (Vedantam et al., 2015, equation 3) has neither; here it is `CIDEr-plain`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

ORDERS = 4
SIGMA = 6.0


class Vector(NamedTuple):
    """A caption's n-grams weighted by tf-idf, the norm for each order, and the length in bigrams."""

    weights: dict[tuple[str, ...], float]
    norms: list[float]
    length: int


class Cider:
    """Similarity of captions under the document frequencies of a set of references, one document per pair."""

    def __init__(self, references: Iterable[Sequence[str]]) -> None:
        self.frequency: Counter[tuple[str, ...]] = Counter()
        documents = 0
        for texts in references:
            documents += 1
            self.frequency.update(set().union(*(ngrams(text) for text in texts)))
        self.log_documents = math.log(documents) if documents else 0.0

    def vector(self, caption: str) -> Vector:
        """The tf-idf vector of a tokenised caption."""
        counts = ngrams(caption)
        weights = {
            ngram: count * (self.log_documents - math.log(max(1, self.frequency[ngram])))
            for ngram, count in counts.items()
        }
        squares = [0.0] * ORDERS
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight * weight
        length = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return Vector(weights, [math.sqrt(square) for square in squares], length)

    @staticmethod
    def similarity(caption: Vector, reference: Vector, clipped: bool) -> float:
        """0…10; `clipped` is CIDEr-D, which also discounts a difference in length."""
        dots = [0.0] * ORDERS
        for ngram, weight in caption.weights.items():
            other = reference.weights.get(ngram)
            if other is not None:
                dots[len(ngram) - 1] += (min(weight, other) if clipped else weight) * other
        total = sum(
            dot / (one * two) if one and two else dot
            for dot, one, two in zip(dots, caption.norms, reference.norms, strict=True)
        )
        if clipped:
            total *= math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
        return 10 * total / ORDERS


def ngrams(caption: str) -> Counter[tuple[str, ...]]:
    """Counts of the n-grams of one to four tokens."""
    words = caption.split()
    return Counter(chain.from_iterable(zip(*(words[i:] for i in range(n)), strict=False) for n in range(1, ORDERS + 1)))

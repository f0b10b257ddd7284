"""Scores that systems reach on the same references without looking at the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onediff.evaluation.cider import Cider, Vector
from onediff.evaluation.files import References
from onediff.evaluation.metrics import chosen
from onediff.evaluation.protocols import protocol as protocol_named
from onediff.evaluation.scoring import Scores, score_all
from onediff.evaluation.tokenisation import tokenised

CANDIDATES = 400  # constants tried
SAMPLE = 300  # pairs on which all candidates are tried
FINALISTS = 10  # constants then tried on all pairs


class Blind(NamedTuple):
    """The answers of two systems that see no image: one caption for every pair, and captions of other pairs."""

    caption: str
    constant: dict[str, str]
    shuffled: dict[str, str]


class Baselines(NamedTuple):
    """The best constant caption, and the scores of the two blind systems."""

    caption: str
    constant: Scores
    shuffled: Scores


def baselines(
    references: Mapping[str, Sequence[str]],
    protocol: str = "plain",
    change_types: Mapping[str, str] | None = None,
    seed: int = 0,
    meteor: bool = False,
) -> Baselines:
    """Baselines under `protocol` for two or more pairs. METEOR is off by default: it takes seconds and adds little."""
    rules = protocol_named(protocol)
    blind = blind_answers(references, protocol, seed)
    systems = [blind.constant, blind.shuffled]
    metrics = chosen(without=() if meteor else ("meteor",))
    constant, shuffled = score_all(References(references, change_types or {}), systems, rules, metrics, seed=seed)
    return Baselines(blind.caption, constant, shuffled)


def blind_answers(references: Mapping[str, Sequence[str]], protocol: str = "plain", seed: int = 0) -> Blind:
    """The answers behind `baselines`, to be scored together with others by `score_all`."""
    texts = protocol_named(protocol).treated(references)
    caption = best_constant(texts, seed)
    ids = [list(texts)[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    # Each pair takes the caption of its neighbour in a random ring, so none keeps its own.
    shuffled = {pair: texts[other][0] for pair, other in zip(ids, ids[1:] + ids[:1], strict=True)}
    return Blind(caption, dict.fromkeys(texts, caption), shuffled)


def best_constant(references: Mapping[str, Sequence[str]], seed: int = 0) -> str:
    """The reference caption that has the highest CIDEr as the answer to every pair.

    The most frequent captions (ties broken at random) are tried on a sample of pairs, and the best of them on all.
    """
    rng = np.random.default_rng(seed)
    captions = [caption for group in references.values() for caption in group]
    tokens, _, _ = tokenised(captions)
    groups = [[tokens[caption] for caption in group] for group in references.values()]
    cider = Cider(groups)
    vectors = [[cider.vector(text) for text in group] for group in groups]
    original = {tokens[caption]: caption for caption in reversed(captions)}
    counts = Counter(text for group in groups for text in dict.fromkeys(group))
    tried = [list(counts)[i] for i in rng.permutation(len(counts))]
    tried = sorted(tried, key=lambda text: -counts[text])[:CANDIDATES]
    sample = [vectors[i] for i in rng.permutation(len(vectors))[:SAMPLE]]
    tried = sorted(tried, key=lambda text: -_mean(cider.vector(text), sample))[:FINALISTS]
    return original[max(tried, key=lambda text: _mean(cider.vector(text), vectors))]


def _mean(answer: Vector, groups: Sequence[Sequence[Vector]]) -> float:
    """CIDEr of the same answer to all pairs."""
    return sum(
        sum(Cider.similarity(answer, vector, clipped=True) for vector in group) / len(group) for group in groups
    ) / len(groups)

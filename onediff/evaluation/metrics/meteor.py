"""METEOR 1.5 by pycocoevalcap's jar, as sufficient statistics: summed rows give the score of any set of pairs.

The formula is that of Denkowski and Lavie (2014) with the jar's English parameters. It turns the jar's statistics into the
score that the jar prints, without running it again for every resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onediff.evaluation.java import JavaProgram, JavaUnavailable
from onediff.evaluation.metrics.metric import Metric, Pairs

COLUMNS = 23
CHUNKS = 20
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
LONGEST = 500
"""Words of a caption that count: aligning two texts takes memory in proportion to the product of their lengths."""
STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


class Meteor(Metric):
    """METEOR 1.5, English, `-norm`, summed over the corpus as the jar does it. Java starts once for all systems."""

    name = "meteor"
    scores = shown = ("METEOR",)
    ptb_only = True
    waits = True

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        captions = [caption for one in systems for caption in one.tokens]
        references = [texts for one in systems for texts in one.reference_tokens]
        with meteor_program(captions, references) as program:
            found = meteor_statistics(program)
        cut = np.array([[len(caption.split()) > LONGEST] for caption in captions], dtype=float)
        return np.split(np.hstack([found, cut]), len(systems))

    def values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"METEOR": meteor(sums[..., :COLUMNS])}

    def notes(self, sums: np.ndarray) -> list[str]:
        cut = int(sums[COLUMNS])
        return [f"METEOR uses only the first {LONGEST} words of {cut} caption{'s' * (cut > 1)}"] if cut else []


def meteor_program(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> JavaProgram:
    """The jar running on tokenised captions, one line of statistics per pair."""
    from pycocoevalcap.meteor import meteor

    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    lines = [
        " ||| ".join(["SCORE", *(_plain(text) for text in texts), _plain(prediction)])
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return JavaProgram(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"], lines)


def meteor_statistics(program: JavaProgram) -> np.ndarray:
    """[pairs, 23]: the statistics from the running program. Raises JavaUnavailable."""
    pairs = len(program.lines)
    lines = program.answers(seconds=300 + pairs / 10)[:pairs]
    try:
        rows = [[float(number) for number in line.split()] for line in lines]
    except ValueError:
        rows = []
    if len(rows) != pairs or any(len(row) != COLUMNS for row in rows):
        raise JavaUnavailable("METEOR's answer does not match the pairs")
    sums = np.array(rows).reshape(pairs, COLUMNS)
    # As the jar sums rows: a caption equal to its reference has no fragment to count.
    stages = sums[:, 4:20].reshape(pairs, 4, 4).sum(1)
    complete = (stages[:, 0] + stages[:, 2] == sums[:, 0]) & (stages[:, 1] + stages[:, 3] == sums[:, 1])
    sums[complete & (sums[:, CHUNKS] == 1), CHUNKS] = 0
    return sums


def meteor(sums: np.ndarray) -> np.ndarray:
    """[..., 23] statistics of one pair, or summed over many → [...] METEOR in 0…1."""
    test_length, reference_length, test_function, reference_function = np.moveaxis(sums[..., :4], -1, 0)
    # Per stage: content words matched in the test and in the reference, then function words in both.
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    chunks, test_words, reference_words = np.moveaxis(sums[..., 20:], -1, 0)
    content = np.array([DELTA, 1 - DELTA])
    precision = _ratio((stages[..., [0, 2]] @ content) @ STAGES, _weighted(test_length, test_function))
    recall = _ratio((stages[..., [1, 3]] @ content) @ STAGES, _weighted(reference_length, reference_function))
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    fragmentation = _ratio(chunks, (test_words + reference_words) / 2)
    return mean * (1 - GAMMA * fragmentation**BETA)


def _weighted(length: np.ndarray, function_words: np.ndarray) -> np.ndarray:
    return DELTA * (length - function_words) + (1 - DELTA) * function_words


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _plain(text: str) -> str:
    """`text` without the separator of the jar's protocol, truncated to `LONGEST` words."""
    return " ".join(text.replace("|||", "").replace("  ", " ").split(" ")[:LONGEST])


METRIC = Meteor()

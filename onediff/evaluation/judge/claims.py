"""Captions split into atomic claims, each matched with the list of true changes.

The list is the sample's change list if it is known; otherwise a language model writes it once from the references
(`changes.txt`), independently of the captions. For each caption, the model then lists its claims and the true change that
each of them states (`claims.txt`). Pairs without a change are the control: every claim about them is invented.

The method is that of DiffCap-Bench, ViDiC and ClaimDiff: recall of true changes, and claims that nothing supports.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onediff.evaluation.files import References
from onediff.evaluation.items import Item, known
from onediff.evaluation.judge.marks import filled, listed
from onediff.evaluation.metrics.metric import SummedScores, ratio
from onediff.evaluation.resampling import intervals
from onediff.llm import Asker

CLAIMS, CHANGES = (Path(__file__).with_name(name) for name in ("claims.txt", "changes.txt"))
COUNTED, RIGHT, TRUE, TOLD, CLAIMED, INVENTED, UNCHANGED, ALARMS = range(8)


@dataclass(frozen=True)
class Claims:
    """The claims of one caption, and the true changes of its pair."""

    changes: tuple[str, ...]
    """The true changes as sentences."""
    claims: tuple[tuple[str, int], ...]
    """Each claim, and the number of the true change that it states, from 1; 0 if it is invented."""

    @property
    def row(self) -> list[float]:
        """[8] counts, in the order of the constants above."""
        told = len({number for _, number in self.claims if number})
        invented = sum(not number for _, number in self.claims)
        unchanged = not self.changes
        right = told == len(self.changes) and not invented
        return [1, right, len(self.changes), told, len(self.claims), invented, unchanged, unchanged and invented > 0]


class ClaimScores(SummedScores):
    """Scores from the rows of `Claims`."""

    scores = ("captions right", "change recall", "invented claims", "false alarms")
    lower_is_better = ("invented claims", "false alarms")

    def values(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "captions right": ratio(sums[..., RIGHT], sums[..., COUNTED]),
            "change recall": ratio(sums[..., TOLD], sums[..., TRUE]),
            "invented claims": ratio(sums[..., INVENTED], sums[..., CLAIMED]),
            "false alarms": ratio(sums[..., ALARMS], sums[..., UNCHANGED]),
        }


def true_changes(asker: Asker, references: References) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """The true changes of each pair in words; None if a judge was needed and gave no usable answer.

    Costs one request per set of references whose changes are not known.
    """
    questions: dict[str, str] = {}
    for pair, captions in references.captions.items():
        truth = known(references.changes.get(pair, {}), f"pair {pair!r}")
        if truth is not None:
            yield pair, tuple(map(in_words, truth.items))
        elif references.change_types.get(pair) == "none":
            yield pair, ()
        else:
            questions[pair] = filled(CHANGES, references="\n".join(map(listed, captions)))
    for pair, record in asker.ask_each(questions):
        yield pair, read_changes(record["answer"]) if record else None


def judged(
    asker: Asker, changes: Mapping[str, tuple[str, ...]], predictions: Mapping[str, str]
) -> Iterator[tuple[str, Claims | None]]:
    """Yields the claims of each caption; None if there was no usable answer. Costs one request per caption."""
    questions = {pair: question(changes[pair], caption) for pair, caption in predictions.items()}
    for pair, record in asker.ask_each(questions):
        yield pair, Claims(changes[pair], read_claims(record["answer"], len(changes[pair]))) if record else None


def controls(references: References, changes: Mapping[str, tuple[str, ...]], count: int) -> dict[str, dict]:
    """Captions known to be right or wrong: {"right": {pair: caption}, "wrong": …}, up to `count` each.

    Right is a pair's own reference if it is the only one or the changes are known. Wrong is the caption of another pair
    with other changes, or, for every third pair, that nothing has changed.
    """
    pairs = sorted(pair for pair, true in changes.items() if true)  # answers arrive in any order
    random.Random(0).shuffle(pairs)
    right = {
        pair: references.captions[pair][0]
        for pair in pairs
        if pair in references.changes or len(references.captions[pair]) == 1
    }
    wrong = {}
    for number, (pair, other) in enumerate(zip(pairs, pairs[1:] + pairs[:1], strict=True)):
        if set(changes[pair]) & set(changes[other]):
            continue
        wrong[pair] = "nothing has changed" if number % 3 == 2 else references.captions[other][0]
    return {"right": dict(list(right.items())[:count]), "wrong": dict(list(wrong.items())[:count])}


def scores(found: Mapping[str, Claims], bootstrap: int, seed: int) -> dict[str, Any]:
    """The scores and their intervals as plain values for JSON."""
    metric, rows = ClaimScores(), np.array([one.row for one in found.values()], dtype=float)
    values = {name: float(value) for name, value in metric.values(rows.sum(0)).items() if not np.isnan(value)}
    return {"scores": values, "intervals": intervals({metric: rows}, bootstrap, seed) if bootstrap else {}}


def question(changes: Sequence[str], caption: str) -> str:
    """The prompt about one caption."""
    numbered = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(changes, start=1))
    return filled(
        CLAIMS, changes=numbered or "(none: nothing has changed)", caption=" ".join(caption.split()) or "(nothing)"
    )


def in_words(item: Item) -> str:
    """A known change as text, with every attribute: `replace: large red cube (top left) → small blue cone`."""
    objects = " and ".join(filter(None, map(described, item.objects))) or "the whole image"
    outcome = described(item.becomes)
    return f"{item.type}: {objects}" + (f" → {outcome}" if outcome else "")


def described(one: Mapping[str, str]) -> str:
    words = " ".join(one[key] for key in ("size", "colour", "material", "shape", "name", "light", "part") if key in one)
    return f"{words} ({one['place']})".strip() if "place" in one else words


def read_changes(text: str) -> tuple[str, ...]:
    """The list in an answer. Raises ValueError."""
    found = _json(text, "changes")
    if not all(isinstance(one, str) for one in found):
        raise ValueError(f"not a list of texts: {text[:80]!r}")
    return tuple(" ".join(one.split()) for one in found if one.strip())


def read_claims(text: str, changes: int | None = None) -> tuple[tuple[str, int], ...]:
    """The claims in an answer; a number that is not in the list becomes 0. Raises ValueError."""
    claims = []
    for one in _json(text, "claims"):
        if not isinstance(one, dict) or not isinstance(one.get("claim"), str):
            raise ValueError(f"not a list of claims: {text[:80]!r}")
        number = one.get("change") or 0
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"claim {one['claim']!r} names change {number!r}, which is not a number")
        claims.append((one["claim"], number if changes is None or number <= changes else 0))
    return tuple(claims)


def usable(text: str) -> None:
    """Raises ValueError if the text answers neither request."""
    if '"claims"' in text:
        read_claims(text)
    else:
        read_changes(text)


def _json(text: str, key: str) -> list[Any]:
    """The list under `key` of the JSON object in an answer, whatever text surrounds it. Raises ValueError."""
    for start in re.finditer(r"\{", text):
        try:
            value, _ = json.JSONDecoder().raw_decode(text[start.start() :])
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get(key), list):
            found: list[Any] = value[key]
            return found
    raise ValueError(f"no list {key!r} in {text[:80]!r}")

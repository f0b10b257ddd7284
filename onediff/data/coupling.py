"""Hard couples: a rule over captions chooses partners, instead of the order of the shuffled block.

A rule arranges the captions of a block in a ring, and each sample is coupled with the next. So whatever the rule, each
sample is the first of one couple and the second of another. Other packages add rules with entry points in the group
`onediff.couples`, `name = module:function`; docs/extending.md has a worked example.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onediff.config.plugins import COUPLING_RULES
from onediff.data.lanes import Lanes, SamplePlace
from onediff.errors import UserError

WINDOW = 1024
"""Captions that a rule sees at once, so that its memory does not grow with `data.block`."""

Rule = Callable[[Sequence[str]], Sequence[int]]
"""Orders the indexes of captions so that neighbours, including last and first, make good couples. It must be
deterministic."""

LONGEST_WAIT = 1024
"""How far a waiting sample of a packed lane may fall behind the newest one: 32 rows of 32 samples."""


def similar_captions(captions: Sequence[str]) -> list[int]:
    """Greedily follows each caption with the most similar remaining one, by shared words weighted by rarity.

    Identical captions have a similarity of 0. Costs 0.03 to 0.2 ms per caption of a dozen words. All numbers before the
    single division are small integers, so the result is the same on every machine.
    """
    count = len(captions)
    words = [sorted(set(caption.lower().split())) for caption in captions]
    column = {word: number for number, word in enumerate(sorted({word for of_one in words for word in of_one}))}
    has = np.zeros((count, len(column)), dtype=np.float32)
    for row, of_one in enumerate(words):
        has[row, [column[word] for word in of_one]] = 1
    # The rarity of a word: the bit length of captions / captions with the word.
    weight = np.array([(count // int(number)).bit_length() for number in has.sum(0)], dtype=np.float32)
    shared = (has * weight) @ has.T
    own = np.diagonal(shared)
    likeness = shared / np.maximum(own[:, None] + own[None] - shared, 1)
    first_of: dict[str, int] = {}
    same = np.array([first_of.setdefault(caption, number) for number, caption in enumerate(captions)])
    likeness[same[:, None] == same[None]] = 0
    ring = [0]
    while len(ring) < count:
        likeness[:, ring[-1]] = -1
        ring.append(int(likeness[ring[-1]].argmax()))
    return ring


class Couples:
    """Chooses partners within one source by a rule. Keeps the rings of each lane's current blocks, 8 bytes per sample."""

    def __init__(self, name: str, lanes: Lanes, record: Callable[[int, int], bytes]) -> None:
        self.name = name
        self.rule: Rule = COUPLING_RULES.load(name)
        self.lanes = lanes
        self.record = record
        """The JSON of a sample by shard and index; empty if it cannot be read."""
        self._rings: dict[int, dict[tuple[int, int], NDArray[np.int64]]] = {}

    def partner(self, lane: int, index: int) -> SamplePlace:
        """The partner of sample `index`: the second of its couple. Raises UserError if the rule does not return a ring.

        The first call in a block reads all of its captions, but no images.
        """
        rings = self._rings.setdefault(lane, {})
        block = self.lanes.block_at(lane, index)
        if block not in rings:
            places = self.lanes.places(lane, index)
            rings[block] = self._ring([caption_in(self.record(at.shard, at.sample)) for at in places])
            oldest = next(iter(rings))
            if sum(map(len, rings.values())) - len(rings[oldest]) - len(rings[block]) >= LONGEST_WAIT:
                del rings[oldest]
        return self.lanes.partner(lane, index, rings[block])

    def _ring(self, captions: list[str]) -> NDArray[np.int64]:
        made: list[int] = []
        for start in range(0, len(captions), WINDOW):
            window = captions[start : start + WINDOW]
            order = [int(number) for number in self.rule(window)]
            if sorted(order) != list(range(len(window))):
                raise UserError(
                    f"couple: the rule {self.name!r} must return every index of the {len(window)} captions once; fix it"
                )
            made += [start + number for number in order]
        return np.array(made, dtype=np.int64)


def caption_in(record: bytes) -> str:
    """All captions or answers of a sample in one string; empty if its JSON cannot be read, a fault counted later."""
    try:
        fields = json.loads(record)
        captions = fields.get("captions") or [t["value"] for t in fields["conversations"] if t["from"] == "gpt"]
        return " ".join(captions)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""

"""How long samples are in tokens, what padding costs, and what packing saves; no image is decoded."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import count
from statistics import mean, median

from onediff.data.packing import Fill
from onediff.data.sample import BadSample, Fault
from onediff.data.stream import Stream


@dataclass(frozen=True)
class Lengths:
    """Tokens of the first samples of a stream, in the order of training."""

    tokens: list[int]
    micro_batch: int
    """Rows of a padded micro-batch."""
    pack: int
    """Tokens of a packed row."""
    fill: Fill
    """How full packed rows of these samples are."""
    max_tokens: int
    """Longest sequence."""
    too_long: Mapping[str, int]
    """Samples longer than that, by data set."""
    cuts: bool
    """Whether those lose the end of their answers, or are passed over."""

    def spread(self) -> dict[str, float]:
        """Least, median, mean, 95th percentile and greatest."""
        in_turn = sorted(self.tokens)
        return {
            "min": in_turn[0],
            "median": median(in_turn),
            "mean": round(mean(in_turn), 1),
            "p95": in_turn[int(0.95 * (len(in_turn) - 1))],
            "max": in_turn[-1],
        }

    def fields(self) -> dict[str, object]:
        """As JSON."""
        return {
            "samples": len(self.tokens),
            "tokens": self.spread(),
            "micro_batch": self.micro_batch,
            "padding": round(padding(self.tokens, self.micro_batch), 4),
            "pack": self.pack,
            "padding_packed": round(1 - self.fill.real, 4),
            "samples_per_row": round(self.fill.samples, 2),
            "max_tokens": self.max_tokens,
            "too_long": dict(self.too_long),
        }

    def lines(self) -> list[str]:
        """In words."""
        spread = ", ".join(f"{name} {value:g}" for name, value in self.spread().items())
        return [
            f"tokens of {len(self.tokens):,} samples: {spread}",
            f"padding: {padding(self.tokens, self.micro_batch):.1%} in micro-batches of {self.micro_batch} as long as their "
            f"longest; {1 - self.fill.real:.1%} in packed rows of {self.pack:,}, {self.fill.samples:.1f} samples in each",
            self._too_long(),
        ]

    def _too_long(self) -> str:
        total = sum(self.too_long.values())
        where = ", ".join(f"{count:,} of {name}" for name, count in self.too_long.items())
        told = f" ({where}): " + ("their answers are cut" if self.cuts else "they are passed over") if total else ""
        return f"longer than data.max_tokens {self.max_tokens:,}: {total:,} samples{told}"


def first_lengths(stream: Stream, lanes: int, samples: int) -> list[int]:
    """Tokens of the first samples in the order of training, one of every lane in turn; bad ones are passed over.

    Raises UserError after `data.bad_in_a_row` of them.
    """
    tokens: list[int] = []
    skipped: list[Fault] = []
    for index in count():
        for lane in range(lanes):
            try:
                tokens.append(stream.tokens(lane, index))
                skipped = []
            except BadSample as bad:
                stream.passed_over(skipped, lane, index, bad)
            if len(tokens) == samples:
                return tokens
    raise AssertionError("unreachable")


def too_long(stream: Stream, lanes: int, samples: int) -> Counter[str]:
    """How many of the first samples are longer than `data.max_tokens`, by data set."""
    whole = copy(stream)
    whole.processor = copy(stream.processor)
    whole.processor.config = stream.processor.config.model_copy(update={"max_tokens": sys.maxsize})
    found: Counter[str] = Counter()
    for number in range(samples):
        index, lane = divmod(number, lanes)
        try:
            longer = whole.tokens(lane, index) > stream.processor.config.max_tokens
        except BadSample:
            continue
        if longer:
            found[stream.sources[stream.mix.at(lane, index)[0]].name] += 1
    return found


def padding(tokens: Sequence[int], micro_batch: int) -> float:
    """Share of padding in micro-batches that are as long as their longest row."""
    groups = [tokens[start : start + micro_batch] for start in range(0, len(tokens), micro_batch)]
    return 1 - sum(tokens) / sum(len(group) * max(group) for group in groups)

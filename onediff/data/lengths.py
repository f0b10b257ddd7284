"""Measures sample lengths in tokens, the cost of padding and the savings of packing, without decoding images."""

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
    """The lengths of the first samples of a stream, in training order."""

    tokens: list[int]
    micro_batch: int
    """Rows of a padded micro-batch."""
    pack: int
    """Tokens of a packed row."""
    fill: Fill
    """How full packed rows of these samples are."""
    max_tokens: int
    """`data.max_tokens`."""
    too_long: Mapping[str, int]
    """Samples longer than that, by data set."""
    cuts: bool
    """Whether the answers of those are cut; otherwise they are skipped."""

    def spread(self) -> dict[str, float]:
        """Minimum, median, mean, 95th percentile and maximum."""
        in_turn = sorted(self.tokens)
        return {
            "min": in_turn[0],
            "median": median(in_turn),
            "mean": round(mean(in_turn), 1),
            "p95": in_turn[int(0.95 * (len(in_turn) - 1))],
            "max": in_turn[-1],
        }

    def fields(self) -> dict[str, object]:
        """All figures, for JSON."""
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
        """The same as lines of text."""
        spread = ", ".join(f"{name} {value:g}" for name, value in self.spread().items())
        return [
            f"tokens of {len(self.tokens):,} samples: {spread}",
            f"padding: {padding(self.tokens, self.micro_batch):.1%} in micro-batches of {self.micro_batch}, padded to the "
            f"longest row; {1 - self.fill.real:.1%} in packed rows of {self.pack:,}, {self.fill.samples:.1f} samples each",
            self._too_long(),
        ]

    def _too_long(self) -> str:
        total = sum(self.too_long.values())
        where = ", ".join(f"{count:,} of {name}" for name, count in self.too_long.items())
        effect = f" ({where}): " + ("their answers are cut" if self.cuts else "they are skipped") if total else ""
        return f"longer than data.max_tokens {self.max_tokens:,}: {total:,} samples{effect}"


def first_lengths(stream: Stream, lanes: int, samples: int) -> list[int]:
    """The lengths of the first samples in training order, one from each lane in turn, without bad ones.

    Raises UserError after `data.bad_in_a_row` bad samples in a row.
    """
    tokens: list[int] = []
    skipped: list[Fault] = []
    for index in count():
        for lane in range(lanes):
            try:
                tokens.append(stream.tokens(lane, index))
                skipped = []
            except BadSample as bad:
                stream.skip(skipped, lane, index, bad)
            if len(tokens) == samples:
                return tokens
    raise AssertionError("unreachable")


def too_long(stream: Stream, lanes: int, samples: int) -> Counter[str]:
    """The number of samples longer than `data.max_tokens` among the first `samples`, by data set."""
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
    """The share of padding in micro-batches padded to their longest row."""
    groups = [tokens[start : start + micro_batch] for start in range(0, len(tokens), micro_batch)]
    return 1 - sum(tokens) / sum(len(group) * max(group) for group in groups)

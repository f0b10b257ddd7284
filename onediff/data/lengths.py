"""How long samples are in tokens, what padding costs, and what packing saves; no picture is decoded."""

from __future__ import annotations

from collections.abc import Sequence
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
        }

    def lines(self) -> list[str]:
        """In words."""
        spread = ", ".join(f"{name} {value:g}" for name, value in self.spread().items())
        return [
            f"tokens of {len(self.tokens):,} samples: {spread}",
            f"padding: {padding(self.tokens, self.micro_batch):.1%} in micro-batches of {self.micro_batch} as long as their "
            f"longest; {1 - self.fill.real:.1%} in packed rows of {self.pack:,}, {self.fill.samples:.1f} samples in each",
        ]


def first_lengths(stream: Stream, lanes: int, samples: int) -> list[int]:
    """Tokens of the first samples in the order of training, one of every lane in turn; bad ones are passed over.

    Raises UserError after `data.bad_in_a_row` of them.
    """
    tokens: list[int] = []
    skipped: list[Fault] = []
    for draw in count():
        for lane in range(lanes):
            try:
                tokens.append(stream.tokens(lane, draw))
                skipped = []
            except BadSample as bad:
                stream.passed_over(skipped, lane, draw, bad)
            if len(tokens) == samples:
                return tokens
    raise AssertionError("unreachable")


def padding(tokens: Sequence[int], micro_batch: int) -> float:
    """Share of padding in micro-batches that are as long as their longest row."""
    groups = [tokens[start : start + micro_batch] for start in range(0, len(tokens), micro_batch)]
    return 1 - sum(tokens) / sum(len(group) * max(group) for group in groups)

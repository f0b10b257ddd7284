"""Limits the number of unusable rows in a conversion."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from data_prep.report import Tally
from onediff.errors import UserError


@dataclass(frozen=True)
class MaxSkipped:
    """At most the fraction `share` of the rows, or `rows` of them, whichever is more."""

    share: float = 0.1
    rows: int = 10

    def __str__(self) -> str:
        parts = [f"{self.share * 100:g}%"] * bool(self.share) + [str(self.rows)] * bool(self.rows or not self.share)
        return " and ".join(parts)

    def check(self, tally: Tally, what: str) -> None:
        """Raises UserError if more rows were skipped."""
        skipped = sum(tally.skipped.values())
        if skipped <= max(self.rows, self.share * tally.read):
            return
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in tally.skipped.most_common())
        raise UserError(
            f"{what}: {skipped:,} of {tally.read:,} rows were skipped ({kinds}), more than --max-skipped {self}; the "
            f"first: {tally.details[0]}; fix the rows, or run the command again with a larger --max-skipped, which "
            "continues from the finished parts"
        )


def max_skipped(text: str) -> MaxSkipped:
    """Parses a limit such as `1%` or `200`. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", text)
    if not match or float(match[1] or 0) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a percentage, such as 1%, nor a number of rows")
    return MaxSkipped(float(match[1]) / 100, 0) if match[1] else MaxSkipped(0, int(match[2]))

"""What a search may choose: `key=a..b`, `key=a..b:log`, or `key=a,b,c`.

optimizer.lr=1e-5..1e-3:log      a number, evenly spread over its magnitudes
model.delta.tokens=8..64         a whole number, since both ends are
optimizer.clip=0.5..2.0          a number
training.attention=auto,sdpa     one of these
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.commands.sweep import split_values
from onediff.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = re.compile(r"(?P<low>[^,:\[{]+?)\.\.(?P<high>[^,:\[{]+?)(?::(?P<scale>\w+))?")
WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Choice:
    """The values that one key may take: those listed, or those between `low` and `high`, both included."""

    key: str
    listed: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    whole: bool = False

    def ends(self) -> list[str]:
        """Overrides that a valid run must bear: every value listed, or both ends."""
        values = self.listed or (self.text(self.low), self.text(self.high))
        return [f"{self.key}={value}" for value in values]

    def text(self, value: object) -> str:
        """A value as the configuration reads it."""
        if self.listed:
            return str(value)
        assert isinstance(value, (int, float))
        return str(int(value)) if self.whole else repr(float(value))

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.listed:
            return CategoricalDistribution(self.listed)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def split_space(words: Sequence[str]) -> tuple[list[str], list[Choice]]:
    """The overrides that are the same in every run, and the keys that the search chooses. Raises UserError."""
    fixed, chosen = [], []
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise UserError(f"{word}: expected key.subkey=low..high, key.subkey=a,b,c or key.subkey=value")
        if match := RANGE.fullmatch(text):
            chosen.append(ranged(word, key, match))
        elif len(values := split_values(word, text)) > 1:
            chosen.append(Choice(key, tuple(values)))
        else:
            fixed.append(word)
    if not chosen:
        raise UserError("nothing to search: give at least one key a range, such as optimizer.lr=1e-5..1e-3:log")
    keys = [choice.key for choice in chosen]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"{twice}: given twice")
    return fixed, chosen


def ranged(word: str, key: str, match: re.Match[str]) -> Choice:
    """The range of one key."""
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        raise UserError(f"{word}: the ends of a range are numbers") from None
    scale = match["scale"]
    if scale not in (None, "log"):
        raise UserError(f"{word}: after the range may stand `:log`, not `:{scale}`")
    if not low < high:
        raise UserError(f"{word}: the first end must be less than the second")
    if scale and low <= 0:
        raise UserError(f"{word}: a logarithmic range begins above 0")
    whole = bool(WHOLE.fullmatch(match["low"]) and WHOLE.fullmatch(match["high"]))
    return Choice(key, (), low, high, scale == "log", whole)

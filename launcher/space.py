"""The search space: `key=a..b`, `key=a..b:log`, or `key=a,b,c`.

optimizer.lr=1e-5..1e-3:log      a number, on a logarithmic scale
model.delta.tokens=8..64         an integer, since both bounds are
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
    """The values that a key may take: the listed ones, or a range from `low` to `high` inclusive."""

    key: str
    listed: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    whole: bool = False

    def ends(self) -> list[str]:
        """Overrides that must all give a valid run: every listed value, or both bounds."""
        values = self.listed or (self.text(self.low), self.text(self.high))
        return [f"{self.key}={value}" for value in values]

    def kind(self) -> str:
        """The values without bounds: those of a study must stay of one kind."""
        numbers = f"a range of {'integers' if self.whole else 'numbers'}{' (log)' if self.log else ''}"
        return ",".join(self.listed) or numbers

    def text(self, value: object) -> str:
        """A value in the form that the configuration parses."""
        if self.listed:
            return str(value)
        assert isinstance(value, (int, float))
        return str(int(value)) if self.whole else repr(float(value))

    def distribution(self) -> BaseDistribution:
        """The same as an Optuna distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.listed:
            return CategoricalDistribution(self.listed)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def split_space(words: Sequence[str]) -> tuple[list[str], list[Choice]]:
    """Split overrides into those that are the same in every run and those that the search chooses.

    Raises UserError if one is malformed or given twice, or if none is left to choose.
    """
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
        raise UserError("nothing to search: give a range for at least one key, such as optimizer.lr=1e-5..1e-3:log")
    keys = [choice.key for choice in chosen]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"{twice}: given twice")
    return fixed, chosen


def ranged(word: str, key: str, match: re.Match[str]) -> Choice:
    """Parse the range of a key. Raises UserError if it is malformed."""
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        raise UserError(f"{word}: the bounds of a range must be numbers") from None
    scale = match["scale"]
    if scale not in (None, "log"):
        raise UserError(f"{word}: a range may end in `:log`, not `:{scale}`")
    if not low < high:
        raise UserError(f"{word}: the lower bound must be less than the upper bound")
    if scale and low <= 0:
        raise UserError(f"{word}: a logarithmic range must start above 0")
    whole = bool(WHOLE.fullmatch(match["low"]) and WHOLE.fullmatch(match["high"]))
    return Choice(key, (), low, high, scale == "log", whole)

"""Rules for couples by name, built in or from another package. Nothing is imported until a rule is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from onediff.config.entry_points import load
from onediff.config.section import nearest
from onediff.errors import UserError

GROUP = "onediff.couples"
BUILT_IN = EntryPoint("similar_captions", "onediff.data.coupling:similar_captions", GROUP)

Rule = Callable[[Sequence[str]], Sequence[int]]
"""From captions to an order of their indexes in which neighbours, and the last and the first, make good couples. The same
captions must always give the same order."""


def rules() -> dict[str, EntryPoint]:
    """All rules by name; none takes the place of a built-in one."""
    return {point.name: point for point in (*entry_points(group=GROUP), BUILT_IN)}


def check_rule(name: str) -> None:
    """Raises UserError, with the names there are, for a rule that is not one of them."""
    if name not in (known := rules()):
        raise UserError(f"no rule {name!r} for couples{nearest(name, known)}; or true, for couples by chance")


@cache
def rule_of(name: str) -> Rule:
    """The rule of that name. Raises UserError."""
    check_rule(name)
    rule: Rule = load(rules()[name], "rule for couples")
    return rule

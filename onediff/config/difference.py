"""The differences between two configurations, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Differences = dict[str, tuple[Any, Any]]
"""Key to (old value, new value); None if one side lacks the key."""


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as `a.b.c` → value."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        made |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return made


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """The differences between two flat mappings, in the order of `old`, then keys that only `new` has."""
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def in_one_line(found: Differences, most: int = 8) -> str:
    """`a.b 1 → 2, c - → 3 and 4 more`: the first `most` differences in one line."""
    shown = [f"{key} {_shown(old)} → {_shown(new)}" for key, (old, new) in list(found.items())[:most]]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(shown) + more


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)

"""Finds where two ranks would wait for each other forever, by comparing their collectives. Torch-free."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from onediff.rehearsal.role import Played

OF_ROWS = ("tensor", "context", "rows")
"""Groups whose ranks process the same rows."""
WHEN = {"building": "while the model is built", "step": "in a step"}


def disagreement(one: Played, other: Played, ranks: tuple[int, int], same_rows: bool) -> str | None:
    """Describes the first collective of a phase in which two ranks differ, or returns None if they agree.

    Ranks of the same tensor or context group read the same rows (`same_rows`) and must agree on every collective. Ranks with
    different rows share no such group, and the collectives within their own groups may depend on the rows.
    """
    for moment, where in WHEN.items():
        calls = [_shared(getattr(played, moment), same_rows) for played in (one, other)]
        for number, (mine, theirs) in enumerate(zip_longest(*calls), start=1):
            if mine != theirs:
                calls_of_both = " and ".join(
                    f"rank {rank} makes {_described(call)}" for rank, call in zip(ranks, (mine, theirs), strict=True)
                )
                return f"phase {one.name}: ranks would wait forever: {where}, at collective {number}, {calls_of_both}"
    return None


def _shared(calls: list[list[Any]], same_rows: bool) -> list[list[Any]]:
    return [call for call in calls if same_rows or call[1] not in OF_ROWS]


def _described(call: list[Any] | None) -> str:
    if call is None:
        return "none"
    op, group, shape, dtype, _ = call
    return f"{op} over {group} of {list(shape)} {dtype}".rstrip()

"""Text in columns, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def in_columns(rows: Sequence[Sequence[str]], align: Literal["<", ">"] = "<") -> list[str]:
    """One line per row, with columns as wide as their widest cells. The first is left-aligned, the others by `align`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [f"<{widths[0]}", *(f"{align}{width}" for width in widths[1:])]
    return ["  ".join(format(cell, how) for cell, how in zip(row, aligned, strict=True)).rstrip() for row in rows]

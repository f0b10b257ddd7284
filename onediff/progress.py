"""How far a long task is: a bar in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 15.0
"""Seconds between two plain lines, at least."""


class Lines(tqdm):
    """Whole lines instead of a bar that is drawn over and over; nothing at all for a task of a few seconds."""

    disable: bool

    def __init__(self, **options: Any) -> None:
        known = ", {rate_fmt}" if options["total"] is None else " of {total_fmt}, {rate_fmt}, {remaining} left"
        super().__init__(
            **options,
            bar_format=f"{{desc}}: {{n_fmt}}{known}",
            delay=LINE_SECONDS,
            mininterval=LINE_SECONDS,
            maxinterval=float("inf"),
            miniters=1,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes one line."""
        print(str(self) if msg is None else msg, file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """Ends without a line: what the task reports follows."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)


def progress(
    total: int | None, desc: str, unit: str, *, initial: int = 0, shown: bool = True, leave: bool = False
) -> tqdm:
    """A `tqdm` over `total` of `unit`, None if nobody knows how many: lines where the output is no terminal.

    Nothing is printed unless `shown`.
    """
    if not shown:
        return tqdm(disable=True)
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(total=total, initial=initial, desc=desc, unit=f" {unit}", leave=leave)

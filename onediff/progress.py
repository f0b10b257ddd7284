"""Progress of long tasks: a bar in a terminal, occasional lines in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 15.0
"""Minimum seconds between two lines."""


class Lines(tqdm):
    """Prints lines instead of a bar, and nothing for a task of a few seconds."""

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
        """Closes without printing, because the task's own report follows."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)


def progress(
    total: int | None, desc: str, unit: str, *, initial: int = 0, shown: bool = True, leave: bool = False
) -> tqdm:
    """A `tqdm` over `total` items of `unit` (None if unknown), as lines if stderr is not a terminal.

    Prints nothing unless `shown`.
    """
    if not shown:
        return tqdm(disable=True)
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(total=total, initial=initial, desc=desc, unit=f" {unit}", leave=leave)

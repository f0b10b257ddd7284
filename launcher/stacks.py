"""Find the rank that the others wait for, from the stacks that ranks write to their logs when a hang is ended.

Standard library only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.record import last_lines

LINES = 400
"""Number of lines at the end of a log that are searched for stacks."""
THREAD = re.compile(r"Current thread 0x\w+ .*\(most recent call first\):")
FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')


class Frame(NamedTuple):
    """The innermost Python frame of a rank."""

    name: str
    file: str
    line: int

    def words(self) -> str:
        return f"{self.name} ({self.file}:{self.line})"


def innermost(lines: Sequence[str]) -> Frame | None:
    """The frame of the thread that got the signal, from faulthandler's last stack in `lines`; None if there is none."""
    starts = [number for number, line in enumerate(lines) if THREAD.search(line)]
    found = FRAME.search(lines[starts[-1] + 1]) if starts and starts[-1] + 1 < len(lines) else None
    return Frame(found["name"], Path(found["file"]).name, int(found["line"])) if found else None


def missing(logs: Sequence[Path]) -> str:
    """Name the ranks that were in a different function from most; empty if there are none. `logs` has one log per rank.

    In a collective, all ranks wait in the same function, except for the rank that has not reached it.
    """
    frames = {rank: frame for rank, log in enumerate(logs) if (frame := innermost(last_lines(log, LINES)))}
    if not frames:
        return ""
    (usual, count), *_ = Counter((frame.name, frame.file) for frame in frames.values()).most_common(1)
    odd = {rank: frame for rank, frame in frames.items() if (frame.name, frame.file) != usual}
    if not odd or count <= len(frames) / 2:
        return ""
    told = ", ".join(f"rank {rank} was in {frame.words()}" for rank, frame in list(odd.items())[:4])
    return f"{told}, the others in {usual[0]} ({usual[1]})"

"""Who keeps the others waiting, from the stacks that ranks write into their logs when a hang is ended.

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
"""As far from the end of a log as its stacks are looked for."""
THREAD = re.compile(r"Current thread 0x\w+ .*\(most recent call first\):")
FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')


class Frame(NamedTuple):
    """The innermost line of Python that a rank was at."""

    name: str
    file: str
    line: int

    def words(self) -> str:
        return f"{self.name} ({self.file}:{self.line})"


def innermost(lines: Sequence[str]) -> Frame | None:
    """Where the thread was that got the signal, by the last stack in `lines` as faulthandler writes it."""
    starts = [number for number, line in enumerate(lines) if THREAD.search(line)]
    found = FRAME.search(lines[starts[-1] + 1]) if starts and starts[-1] + 1 < len(lines) else None
    return Frame(found["name"], Path(found["file"]).name, int(found["line"])) if found else None


def missing(logs: Sequence[Path]) -> str:
    """The ranks that were elsewhere than most, in words, or nothing; `logs` are those of all ranks in order.

    In a collective all ranks wait in the same function, but for the one that has not arrived.
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

"""The heartbeat of a run: a small file written by rank 0, from which followers can tell progress from a hang.

    @section("evaluation")
    def scores(batches):
        for number, batch in enumerate(batches, 1):
            ...
            beat(number, len(batches))

Every process may enter sections; only the one that called `keep_heartbeat` writes. A beat costs a dictionary lookup, and
once per second a write of 300 bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onediff.runs.folder import write_json

FILE = "heartbeat.json"
SECTIONS = ("start", "loading", "step", "validation", "evaluation", "captions", "saving", "export", "closing")
"""Sections in the order of a run. Each has its own time limit in the launcher's profile."""
PAUSE_SECONDS = 1.0
"""Shortest time between two writes within one section."""


class Heartbeat:
    """The sections of one phase in this process, from its start."""

    def __init__(self, file: Path, phase: str, began: float) -> None:
        self.file, self.phase = file, phase
        self.step: int | None = None
        """The last step taken."""
        self.open: list[tuple[str, float]] = [("start", began)]
        """Names and start times of the open sections, innermost last."""
        self.seconds: dict[str, float] = {}
        self.since = began
        """The time up to which `seconds` is counted."""
        self.slowest: dict[str, float | str] | None = None
        """The slowest rank in the last comparison: `step`, `rank`, the `share` by which it is behind the median, and what
        was slow (`by`)."""
        self.written = 0.0

    def count(self) -> None:
        """Adds the time since the last count to the innermost section."""
        now, name = time.time(), self.open[-1][0]
        self.seconds[name] = self.seconds.get(name, 0.0) + max(0.0, now - self.since)
        self.since = now

    def write(self, done: int | None = None, total: int | None = None) -> None:
        """Replaces the file."""
        self.count()
        (name, began), self.written = self.open[-1], time.time()
        state = {"phase": self.phase, "section": name, "began": began, "moved": self.written, "step": self.step}
        seconds = {section: round(spent, 3) for section, spent in self.seconds.items()}
        try:
            write_json(self.file, {**state, "done": done, "total": total, "seconds": seconds, "slowest": self.slowest})
        except OSError:
            return  # missing storage must not end a step; code that needs it will report the error


_heartbeat: Heartbeat | None = None


def keep_heartbeat(run: Path, phase: str) -> None:
    """Makes this process write `run`/heartbeat.json, from now on for `phase`."""
    global _heartbeat
    _heartbeat = Heartbeat(run / FILE, phase, process_started() if _heartbeat is None else time.time())
    _heartbeat.write()


def stage(name: str) -> None:
    """Enters the outermost section `name`: `start`, `loading`, `step` or `closing`."""
    assert name in SECTIONS, name
    heart = _heartbeat
    if heart is not None and heart.open[0][0] != name:
        heart.count()
        heart.open[0] = (name, time.time())
        heart.write()


@contextmanager
def section(name: str) -> Iterator[None]:
    """A context or decorator for a part of the phase with its own heartbeat and time limit."""
    assert name in SECTIONS, name
    heart = _heartbeat
    if heart is None:
        yield
        return
    heart.count()
    heart.open.append((name, time.time()))
    heart.write()
    try:
        yield
    finally:
        heart.count()
        heart.open.pop()
        heart.write()


def beat(done: int | None = None, total: int | None = None) -> None:
    """Reports progress of the innermost section: `done` of `total`."""
    heart = _heartbeat
    if heart is not None and time.time() - heart.written >= PAUSE_SECONDS:
        heart.write(done, total)


def stepped(step: int) -> None:
    """Reports that an optimizer step was taken."""
    if _heartbeat is not None:
        _heartbeat.step = step
        stage("step")
        beat(step)


def compared(step: int, rank: int, share: float, by: str) -> None:
    """Reports the slowest rank of a comparison, the share by which it was behind the median rank, and what was slow."""
    if _heartbeat is not None:
        _heartbeat.slowest = {"step": step, "rank": rank, "share": share, "by": by}


def seconds_by_section() -> dict[str, float]:
    """Seconds spent in each section so far; empty if this process keeps no heartbeat."""
    if _heartbeat is None:
        return {}
    _heartbeat.count()
    return dict(_heartbeat.seconds)


def process_started() -> float:
    """The start time of this process, before imports, in seconds since the epoch."""
    try:
        return os.stat("/proc/self").st_ctime
    except OSError:
        return time.time()

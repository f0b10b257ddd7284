"""What a run is at: one small file that rank 0 keeps, by which its followers tell work from a hang.

    with section("evaluation", total=40):
        for number, batch in enumerate(batches, 1):
            ...
            beat(number)

Every process may enter sections; only the one that called `keep_heartbeat` writes. A beat costs a dictionary look-up, and
once a second the writing of a file of 300 bytes.
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
"""In the order of a run; each has a limit of its own in the launcher's profile."""
PAUSE_SECONDS = 1.0
"""Shortest pause between two writings within one section."""


class Heartbeat:
    """The sections of one phase in this process, from its start."""

    def __init__(self, file: Path, phase: str) -> None:
        self.file, self.phase = file, phase
        self.began = process_started()
        self.step: int | None = None
        """The last step taken."""
        self.open: list[tuple[str, float, int | None]] = [("start", self.began, None)]
        """Name, beginning and total of the sections that are open, the innermost last."""
        self.seconds: dict[str, float] = {}
        self.since = self.began
        """Up to when `seconds` counts."""
        self.written = 0.0

    def count(self) -> None:
        """Adds the time since the last count to the innermost section."""
        now, name = time.time(), self.open[-1][0]
        self.seconds[name] = self.seconds.get(name, 0.0) + max(0.0, now - self.since)
        self.since = now

    def enter(self, name: str, total: int | None) -> None:
        assert name in SECTIONS, name
        self.count()
        self.open.append((name, time.time(), total))
        self.write(None)

    def leave(self) -> None:
        self.count()
        self.open.pop()
        self.write(None)

    def beat(self, done: int | None) -> None:
        """Tells that the innermost section moved; at most once a second."""
        if time.time() - self.written >= PAUSE_SECONDS:
            self.count()
            self.write(done)

    def write(self, done: int | None) -> None:
        name, began, total = self.open[-1]
        self.written = time.time()
        told = {"phase": self.phase, "section": name, "began": began, "moved": self.written, "done": done}
        seconds = {section: round(spent, 3) for section, spent in self.seconds.items()}
        try:
            write_json(self.file, {**told, "total": total, "step": self.step, "seconds": seconds})
        except OSError:
            return  # storage that is away must not end a step; what needs it will say so


_heartbeat: Heartbeat | None = None


def keep_heartbeat(run: Path, phase: str) -> None:
    """Makes this process the one that writes `run`/heartbeat.json, from now on for `phase`."""
    global _heartbeat
    before, _heartbeat = _heartbeat, Heartbeat(run / FILE, phase)
    if before is not None:  # a later phase of the same process
        _heartbeat.began = _heartbeat.since = time.time()
        _heartbeat.open = [("start", _heartbeat.began, None)]
    _heartbeat.write(None)


@contextmanager
def section(name: str, total: int | None = None) -> Iterator[None]:
    """A part of the phase with a heartbeat and a limit of its own; `total` is what it has to do, where that is counted."""
    heart = _heartbeat
    if heart is None:
        yield
        return
    heart.enter(name, total)
    try:
        yield
    finally:
        heart.leave()


def beat(done: int | None = None) -> None:
    """Tells that the section moves: `done` of its total."""
    if _heartbeat is not None:
        _heartbeat.beat(done)


def stepped(step: int) -> None:
    """Tells that an optimizer step was taken: the phase has started, whatever it was at before."""
    heart = _heartbeat
    if heart is None:
        return
    heart.step = step
    if heart.open[0][0] != "step":
        heart.count()
        heart.open[0] = ("step", time.time(), None)
        heart.write(step)
    heart.beat(step)


def process_started() -> float:
    """When this process was started, imports included, in seconds since the epoch."""
    try:
        return os.stat("/proc/self").st_ctime
    except OSError:
        return time.time()

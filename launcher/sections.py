"""Progress of a phase: what rank 0 is doing, since when, and how long it may take without progress.

Standard library only.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from launcher.record import Attempt, Json, Record, last_lines

STEP, START = "step", "start"


class Beat(NamedTuple):
    """Rank 0's last report on its work (see `onediff.runs.section`)."""

    section: str
    began: float
    """When the section began; seconds since the epoch."""
    moved: float
    """When it last made progress; seconds since the epoch."""
    done: int | None
    """Number of steps, batches or parameters done, if they are counted."""
    total: int | None
    seconds: dict[str, float]
    """Seconds spent in each section since the process started."""
    slowest: Json
    """Slowest rank in the last comparison: `step`, `rank`, `share` behind the median, `by` what; empty before the first."""


def as_beat(found: Json, phase: str) -> Beat | None:
    """The heartbeat of `phase` in the content of a file, or None if it belongs to another phase or is garbled."""
    if found.get("phase") != phase or not isinstance(found.get("section"), str):
        return None
    began, moved = float(found.get("began") or 0), float(found.get("moved") or 0)
    seconds, slowest = found.get("seconds"), found.get("slowest")
    return Beat(
        found["section"],
        began,
        moved,
        found.get("done"),
        found.get("total"),
        seconds if isinstance(seconds, dict) else {},
        slowest if isinstance(slowest, dict) and slowest.keys() >= {"step", "rank", "share"} else {},
    )


class Progress:
    """Progress of an attempt, read from the files its ranks write."""

    def __init__(self, record: Record, phase: str, attempt: Attempt, minutes: Json) -> None:
        """`minutes` has a limit for each section."""
        self.record, self.phase, self.attempt, self.minutes = record, phase, attempt, minutes
        self.began = time.time()
        self.moved = self.began
        """When progress was last seen, by this machine's clock."""
        self.before = record.beat()
        """The heartbeat of an earlier start of the phase."""
        self.beat: Beat | None = None
        self.step = record.step(phase)

    def look(self) -> None:
        """Read the current state, and note when the first new step is reached."""
        found = self.record.beat()
        step, beat = self.record.step(self.phase), None if found == self.before else as_beat(found, self.phase)
        if step != self.step or beat != self.beat:
            self.moved = time.time()
        if beat is not None:
            self.attempt.seconds = dict(beat.seconds)
            self.attempt.section = in_words(beat)
        if step > self.attempt.first_step and self.attempt.moved is None:
            self.attempt.moved = time.time()
            self.attempt.repeated = self.attempt.seconds.get(STEP, 0.0)
        self.step, self.beat = step, beat

    def stuck(self) -> str | None:
        """Why the ranks must be ended, or None while there is progress."""
        section = self.beat.section if self.beat is not None else START if self.attempt.moved is None else STEP
        limit = float(self.minutes[section if section in self.minutes else STEP])
        if time.time() - self.moved <= limit * 60:
            return None
        if section == STEP:
            return f"no step for {limit:g} minutes after step {self.step}"
        at = in_words(self.beat) if self.beat is not None else START
        return f"{at}: nothing moved for {limit:g} minutes after step {self.step}"


def in_words(beat: Beat) -> str:
    """`evaluation, 12 of 40`."""
    if beat.section == STEP or beat.done is None:
        return beat.section
    return f"{beat.section}, {beat.done}{f' of {beat.total}' if beat.total else ''}"


class Spikes:
    """New bad steps of a phase, from the file that training writes them to."""

    def __init__(self, run: Path, phase: str) -> None:
        self.file = run / f"phase-{phase}" / "bad-steps.jsonl"
        self.size = size_of(self.file)

    def new(self) -> str | None:
        """The newest bad step as text, if one was added since the last call."""
        size = size_of(self.file)
        if size <= self.size:
            return None
        self.size = size
        try:
            last = json.loads(last_lines(self.file, 1)[0])
        except (ValueError, IndexError):
            return None
        return f"step {last.get('step')}: {last.get('why') or last.get('kind')}"


def size_of(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

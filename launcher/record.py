"""What the launcher knows of a run, kept in `<run>/launch`: the frozen plan, the jobs, and every attempt with its end.

Standard library only: the job on the node reads and writes these files before any environment is known to be good.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass
class Attempt:
    """One start of one phase: where it ran, how far it came, and how it ended."""

    number: int
    job: str
    nodes: list[str]
    tasks: int
    started: float
    """Seconds since the epoch."""
    first_step: int
    """The furthest step that the phase had reached before."""
    ended: float | None = None
    last_step: int | None = None
    cause: str | None = None
    """`finished`, `stopped`, `bad input`, `not a number`, `crash`, `hang`, `bad node`, `vanished` or `cancelled`."""
    exit_code: int | None = None
    reason: str | None = None
    """One line for people."""
    log: str | None = None
    """The log to read first."""
    blamed: list[str] = field(default_factory=list)
    """Nodes that this end speaks against."""
    action: str | None = None
    """What the launcher did: `done`, `requeue` or `fail`."""


class Record:
    """The files of `<run>/launch`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / "launch"
        self.plan_file = self.folder / "plan.json"
        self.logs = run / "logs"

    def plan(self) -> Json:
        """The frozen plan; empty for a folder that was never submitted."""
        return read_json(self.plan_file) or {}

    def jobs(self) -> list[Json]:
        """Every job submitted for this run, oldest first: `phase`, `job`, `submitted`."""
        return read_json(self.folder / "jobs.json") or []

    def add_jobs(self, jobs: list[Json]) -> None:
        write_json(self.folder / "jobs.json", self.jobs() + jobs)

    def latest_jobs(self) -> dict[str, str]:
        """The newest job of each phase."""
        return {entry["phase"]: entry["job"] for entry in self.jobs()}

    def attempts(self, phase: str) -> list[Attempt]:
        """Every start of `phase`, oldest first."""
        known = {item.name for item in fields(Attempt)}
        found = read_json(self.folder / f"attempts-{phase}.json") or []
        return [Attempt(**{key: value for key, value in entry.items() if key in known}) for entry in found]

    def write_attempts(self, phase: str, attempts: list[Attempt]) -> None:
        write_json(self.folder / f"attempts-{phase}.json", [asdict(attempt) for attempt in attempts])

    def exits(self, phase: str, attempt: int) -> Path:
        """Folder in which each task of an attempt leaves how it ended."""
        return self.folder / "exits" / f"{phase}.{attempt}"

    def status(self) -> Json:
        """What rank 0 wrote last; empty before the first step."""
        return read_json(self.run / "status.json") or {}

    def finished(self, phase: str) -> bool:
        """Whether `phase` needs no further attempt."""
        if phase == "evaluate":
            return (self.run / "evaluation" / "scores.json").is_file()
        return (self.run / f"phase-{phase}" / "finished.json").is_file()

    def figures(self, phase: str) -> Json:
        """The last figures of a finished phase."""
        return read_json(self.run / f"phase-{phase}" / "finished.json") or {}

    def step(self, phase: str) -> int:
        """The furthest step of `phase` known from its checkpoints and, while it is at it, from the status."""
        status = self.status()
        seen = [int(status.get("step") or 0)] if status.get("phase") == phase else []
        for folder in (self.run / "checkpoints" / f"phase-{phase}").glob("step-*"):
            seen += [int(digits)] if (digits := folder.name.removeprefix("step-")).isdecimal() else []
        return max(seen, default=0)


def read_json(path: Path) -> Any:
    """The value in `path`, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes beside the final name and renames, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    aside.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(aside, path)

"""The launcher's record of a run in `<run>/launch`: the frozen plan, the jobs, and every attempt and how it ended.

Standard library only: the job reads and writes these files on a node whose environment has not been verified yet.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from onediff.atomic import write_whole
from onediff.errors import UserError

Json = dict[str, Any]
SUPERSEDED = "superseded"
TAIL_BYTES = 1 << 16
"""Bytes at the end of a log that are searched for its last lines."""


@dataclass
class Attempt:
    """One start of a phase: where it ran, how far it got, and how it ended."""

    number: int
    job: str
    nodes: list[str]
    tasks: int
    started: float
    """Seconds since the epoch."""
    first_step: int
    """The furthest step that the phase had reached before this attempt."""
    ended: float | None = None
    last_step: int | None = None
    cause: str | None = None
    """`finished`, `stopped`, `bad input`, `not a number`, `crash`, `hang`, `bad node` (failed its pre-flight check),
    `bad hardware`, `hopeless` or `hopeless at start` (known failures), `refused` (srun rejected its options), `slow node`
    (stopped at a checkpoint to be replaced by a spare), `interrupted` (by an external signal), `vanished` or `cancelled`."""
    exit_code: int | None = None
    reason: str | None = None
    """A one-line explanation for users."""
    log: str | None = None
    """The log to read first."""
    blamed: list[str] = field(default_factory=list)
    """Nodes that this end counts against."""
    action: str | None = None
    """What the launcher did: `done`, `restart` (in the same job), `requeue` or `fail`."""
    failed: float | None = None
    """When the first rank failed, or the last progress before a hang; seconds since the epoch, like all times here."""
    launched: float | None = None
    """When the ranks were started, after the node checks."""
    moved: float | None = None
    """When it first reached a new step."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each section, as measured by rank 0."""
    repeated: float = 0.0
    """The part of the step seconds spent on steps that an earlier attempt had already done."""
    section: str | None = None
    """What rank 0 was last doing."""

    @property
    def is_local(self) -> bool:
        """Whether it ran without Slurm; `job` then names a process."""
        return self.job.startswith("pid ")


class Record:
    """The files of `<run>/launch`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / "launch"
        self.plan_file = self.folder / "plan.json"
        self.logs = run / "logs"

    def plan(self) -> Json:
        """The frozen plan, or an empty dict for a folder that was never submitted."""
        return read_json(self.plan_file) or {}

    def submitted_plan(self) -> Json:
        """The frozen plan. Raises UserError if there is none."""
        plan = self.plan()
        if "phases" not in plan:
            raise UserError(f"{self.plan_file}: no such file; the run's folder was removed, moved or never submitted")
        return plan

    def jobs(self) -> list[Json]:
        """Every job submitted for this run, oldest first: `phase`, `job`, `submitted`; `job` is None until Slurm answers."""
        return read_json(self.folder / "jobs.json") or []

    def write_jobs(self, jobs: list[Json]) -> None:
        write_json(self.folder / "jobs.json", jobs)

    def latest_jobs(self) -> dict[str, str]:
        """The newest job of each phase."""
        return {entry["phase"]: entry["job"] for entry in self.jobs() if entry["job"] is not None}

    def attempts(self, phase: str) -> list[Attempt]:
        """Every start of `phase`, oldest first."""
        known = {item.name for item in fields(Attempt)}
        found = read_json(self.folder / f"attempts-{phase}.json") or []
        return [Attempt(**{key: value for key, value in entry.items() if key in known}) for entry in found]

    def write_attempts(self, phase: str, attempts: list[Attempt]) -> None:
        write_json(self.folder / f"attempts-{phase}.json", [asdict(attempt) for attempt in attempts])

    def exits(self, phase: str, attempt: int) -> Path:
        """Folder in which each task of an attempt records how it ended."""
        return self.folder / "exits" / f"{phase}.{attempt}"

    def superseded(self, phase: str, attempt: int) -> Path:
        """Marks that a later attempt took over: ranks of this one that still run, on a node that Slurm lost, must end."""
        return self.exits(phase, attempt) / SUPERSEDED

    def status(self) -> Json:
        """The status that rank 0 last wrote; empty before the first step."""
        return glimpse(self.run / "status.json")

    def beat(self) -> Json:
        """Rank 0's last heartbeat; empty before the first."""
        return glimpse(self.run / "heartbeat.json")

    def finished(self, phase: str) -> bool:
        """Whether `phase` needs no further attempt."""
        if phase == "evaluate":
            return os.path.isfile(self.run / "evaluation" / "scores.json")
        return os.path.isfile(self.run / f"phase-{phase}" / "finished.json")

    def final_metrics(self, phase: str) -> Json:
        """The last metrics of a finished phase."""
        return glimpse(self.run / f"phase-{phase}" / "finished.json")

    def step(self, phase: str) -> int:
        """The furthest known step of `phase`, from its checkpoints and, while it runs, from rank 0's status."""
        told = [found.get("step") for found in (self.status(), self.beat()) if found.get("phase") == phase]
        seen = [step for step in told if isinstance(step, int)]
        for name in names_in(self.run / "checkpoints" / f"phase-{phase}"):
            digits = name.removeprefix("step-")
            seen += [int(digits)] if digits != name and digits.isdecimal() else []
        return max(seen, default=0)


def read_json(path: Path) -> Any:
    """The value in one of the launcher's files, or None if there is no file. Raises UserError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}; only the launcher may write this file") from None


def glimpse(path: Path) -> Json:
    """What another process wrote to `path`; empty if that is missing, incomplete, garbled or unreachable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log of any size; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder; empty if it is missing or unreachable."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def write_json(path: Path, value: Any) -> None:
    """Write a file atomically, creating its folder. It survives a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1), durable=True)


def own_mark() -> str:
    """Host and process id, for names of temporary files: nodes that share a folder may have equal process ids."""
    return f"{os.uname().nodename}-{os.getpid()}"

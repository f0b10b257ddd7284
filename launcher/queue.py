"""Queue jobs so that none is lost or duplicated: each is locked, recorded beforehand, and identified by its comment."""

from __future__ import annotations

import fcntl
import hashlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launcher import slurm
from launcher.environment import unheeded
from launcher.record import Json, Record
from onediff.errors import UserError

ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED")
SETTLE_SECONDS = 60.0
"""Seconds within which a job may still appear in the queue after its sbatch got no answer."""


def mark(run: Path, phase: str) -> str:
    """The end of the comment of every job of `phase`: a hash of the run's path (12 hexadecimal digits) and the phase."""
    return f"onediff:{hashlib.sha256(str(run).encode()).hexdigest()[:12]}:{phase}"


@contextmanager
def sole(record: Record, doing: str) -> Iterator[None]:
    """Lock the run. Raises UserError if another process holds it; `doing` says what that one does, as in `submitting`."""
    record.folder.mkdir(exist_ok=True)
    with (record.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{record.run}: another process is {doing} it; follow it with `onediff launch status {record.run}`"
            ) from None
        except OSError:
            pass  # this file system has no locks; the record written before each job must do
        yield


def active_jobs(record: Record) -> dict[str, slurm.Job]:
    """Pending and running jobs of the run by phase: those on record, and those that carry its mark."""
    latest = record.latest_jobs()
    if not latest and not slurm.available():
        return {}  # a run on this machine only
    listed = slurm.jobs(list(latest.values())) if latest else {}
    found = [*marked(record.run).items(), *((phase, listed[job]) for phase, job in latest.items() if job in listed)]
    return {phase: job for phase, job in found if job.state in ACTIVE}


def marked(run: Path) -> dict[str, slurm.Job]:
    """The newest job of each phase in this user's queue that carries the run's mark."""
    word = re.compile(re.escape(mark(run, "")) + r"([A-Za-z0-9_.-]+)")
    jobs = [(match[1], job) for job, comment in slurm.own_jobs() if (match := word.search(comment))]
    return dict(sorted(jobs, key=lambda found: (found[1].state in ACTIVE, int(found[1].job))))


def require_idle(record: Record) -> None:
    """Raise UserError if a job of the run is, or may be, queued or running."""
    run = record.run
    if running := active_jobs(record):
        phase, job = next(iter(running.items()))
        raise UserError(
            f"{run}: phase {phase} is {job.state.lower()} as job {job.job}; follow it with `onediff launch status "
            f"{run}` or end it with `onediff launch cancel {run}`"
        )
    for entry in record.jobs():
        if entry["job"] is None and (age := time.time() - entry["submitted"]) < SETTLE_SECONDS:
            raise UserError(
                f"{run}: another submission started to queue phase {entry['phase']} {age:.0f} s ago and has not reported "
                "the result; try again in a minute"
            )
    record.write_jobs([entry for entry in record.jobs() if entry["job"] is not None])


def submit_chain(
    record: Record, phases: Sequence[str], scripts: Sequence[Path], behind: str | None = None
) -> list[tuple[str, str]]:
    """Have Slurm check every script, then queue all or none, as `queue_chain` does."""
    if wishes := unheeded():
        print(f"ignored, use the profile instead: {', '.join(wishes)}", file=sys.stderr)
    for script in scripts:
        slurm.test_only(str(script))
    (record.folder / "cancelled").unlink(missing_ok=True)
    return queue_chain(record, phases, scripts, behind)


def queue_chain(
    record: Record, phases: Sequence[str], scripts: Sequence[Path], behind: str | None = None
) -> list[tuple[str, str]]:
    """Queue the phases, each after the success of the previous one. Returns (phase, job id) pairs.

    If `behind` is given, the first phase waits for that job to end, successfully or not. If Slurm refuses a job, those
    already queued are cancelled.
    """
    before, made = record.jobs(), list[Json]()
    try:
        for phase, script in zip(phases, scripts, strict=True):
            # Without the second option the dependents of a failed job would wait forever.
            after = [f"--dependency=afterok:{made[-1]['job']}", "--kill-on-invalid-dep=yes"] if made else []
            after += [f"--dependency=afterany:{behind}"] if behind and not made else []
            entry: Json = {"phase": phase, "job": None, "submitted": time.time()}
            record.write_jobs([*before, *made, entry])
            entry["job"] = queued(record, phase, script, after)
            made.append(entry)
            record.write_jobs([*before, *made])
    except slurm.NoAnswer as error:
        raise UserError(
            f"{error}; {phase} may have been queued anyway. {take_back(record, before, made, entry)}"
        ) from None
    except UserError as error:
        raise UserError(f"{error}{take_back(record, before, made)}") from None
    return [(entry["phase"], entry["job"]) for entry in made]


def queued(record: Record, phase: str, script: Path, options: Sequence[str]) -> str:
    """Queue one script and return its job id, which is looked up in the queue if sbatch's answer was lost."""
    try:
        return slurm.submit(str(script), options)
    except slurm.NoAnswer:
        found = marked(record.run).get(phase)
        if found is None or found.state not in ACTIVE:
            raise
        return found.job


def take_back(record: Record, before: list[Json], made: list[Json], lost: Json | None = None) -> str:
    """Cancel the jobs `made`. Returns a remark on those that may be left."""
    left = [lost] if lost else []
    try:
        if made:
            slurm.command(["scancel", *(entry["job"] for entry in made)])
    except UserError:
        left = [*made, *left]
    record.write_jobs([*before, *left])
    if not left:
        return ""
    names = ", ".join(f"{entry['phase']} (job {entry['job'] or 'unknown'})" for entry in left)
    return f"; not cancelled: {names}; once Slurm answers, run: onediff launch cancel {record.run}"

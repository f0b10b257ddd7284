"""Cancel the jobs of a run after a checkpoint."""

from __future__ import annotations

import time

from launcher import slurm
from launcher.queue import active_jobs
from launcher.record import Record


def cancel(record: Record, now: bool, wait: float) -> dict[str, slurm.Job]:
    """Cancel all jobs of a run and return them by phase.

    Running jobs get a warning and up to `wait` seconds for a checkpoint first, unless `now` is set or it is a data job.
    """
    active = active_jobs(record)
    if not active:
        return active
    # The supervisor reads this mark once its ranks have stopped, and does not requeue the job.
    (record.folder / "cancelled").touch()
    is_data = record.plan().get("kind") == "data"  # its tasks have no checkpoint to write
    running = [job.job for job in active.values() if job.state == "RUNNING"]
    waiting = [job.job for job in active.values() if job.state != "RUNNING"]
    if waiting:
        slurm.command(["scancel", *waiting])
    if running and not now and not is_data:
        slurm.command(["scancel", "--signal=USR1", *running])
        end = time.monotonic() + wait
        while time.monotonic() < end and any(job.state == "RUNNING" for job in slurm.jobs(running).values()):
            time.sleep(1)
    if running:
        left = [job.job for job in slurm.jobs(running).values() if job.state == "RUNNING"]
        if left:
            slurm.command(["scancel", *left])
    return active

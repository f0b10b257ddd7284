"""End all jobs of a run. The ranks get a warning first and write a checkpoint, so that it can be resumed.

onediff launch cancel runs/demo
"""

from __future__ import annotations

import argparse
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--now", action="store_true", help="do not wait for a checkpoint")
    parser.add_argument("--wait", type=float, default=120, metavar="SECONDS", help="longest wait for it (default: 120)")


def run(args: argparse.Namespace) -> int:
    from launcher import slurm
    from launcher.local_chain import run_folder
    from launcher.queue import active_jobs
    from launcher.record import Record

    record = Record(run_folder(args.run))
    active = active_jobs(record)
    if not active:
        print(f"{record.run}: no job is queued or running")
        return 0
    # The supervisor reads this mark when its ranks have stopped, and does not queue the job again.
    (record.folder / "cancelled").touch()
    is_data = record.plan().get("kind") == "data"  # its tasks have no checkpoint to write
    running = [job.job for job in active.values() if job.state == "RUNNING"]
    waiting = [job.job for job in active.values() if job.state != "RUNNING"]
    if waiting:
        slurm.command(["scancel", *waiting])
    if running and not args.now and not is_data:
        slurm.command(["scancel", "--signal=USR1", *running])
        end = time.monotonic() + args.wait
        while time.monotonic() < end and any(job.state == "RUNNING" for job in slurm.jobs(running).values()):
            time.sleep(1)
    if running:
        left = [job.job for job in slurm.jobs(running).values() if job.state == "RUNNING"]
        if left:
            slurm.command(["scancel", *left])
    print(f"cancelled: {', '.join(f'{phase} (job {job.job})' for phase, job in active.items())}")
    print(f"go on with: {record.plan().get('again') or f'onediff launch resume {record.run}'}")
    return 0

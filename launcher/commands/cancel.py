"""Cancel all jobs of a run. Its ranks are warned first and write a checkpoint, so that the run can be resumed.

onediff launch cancel runs/demo
"""

from __future__ import annotations

import argparse

from onediff.amounts import amount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--now", action="store_true", help="do not wait for a checkpoint")
    parser.add_argument(
        "--wait", type=amount, default=120, metavar="SECONDS", help="longest wait for a checkpoint (default: 120)"
    )


def run(args: argparse.Namespace) -> int:
    from launcher.cancel import cancel
    from launcher.local_chain import run_folder
    from launcher.record import Record

    record = Record(run_folder(args.run))
    ended = cancel(record, args.now, args.wait)
    if not ended:
        print(f"{record.run}: no job is queued or running")
        return 0
    print(f"cancelled: {', '.join(f'{phase} (job {job.job})' for phase, job in ended.items())}")
    print(f"continue with: {record.plan().get('again') or f'onediff launch resume {record.run}'}")
    return 0

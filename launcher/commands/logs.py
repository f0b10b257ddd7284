"""Print the log of a run: the newest job's merged log, or that of one rank.

onediff launch logs runs/demo -f
onediff launch logs runs/demo --phase two --rank 3
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from onediff.amounts import at_least

if TYPE_CHECKING:
    from launcher.record import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--phase", help="phase (default: the latest to start)")
    parser.add_argument("--rank", type=at_least(0), metavar="R", help="only this rank, of the newest attempt")
    parser.add_argument(
        "-n", "--lines", type=at_least(0), default=40, metavar="N", help="number of last lines (default: 40)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new lines until Ctrl-C")


def run(args: argparse.Namespace) -> int:
    from launcher.local_chain import run_folder
    from launcher.record import Record

    record = Record(run_folder(args.run))
    file = chosen_log(record, args.phase, args.rank)
    with file.open(encoding="utf-8", errors="replace") as log:
        print(f"==> {file} <==")
        print("\n".join(log.read().splitlines()[-args.lines :]))
        while args.follow:
            sys.stdout.flush()
            text = log.read()
            if text:
                print(text, end="")
            else:
                time.sleep(0.5)
    return 0


def chosen_log(record: Record, phase: str | None, rank: int | None) -> Path:
    """The file that the options select. Raises UserError if there is none yet."""
    from onediff.errors import UserError

    if record.plan().get("kind") == "data":
        return task_log(record, phase, rank or 0)
    started = {name: attempts[-1] for name in record.plan()["phases"] if (attempts := record.attempts(name))}
    phase = phase or max(started, key=lambda name: started[name].started, default=None)
    if phase is None or phase not in started:
        raise UserError(
            f"{record.run}: {'phase ' + phase if phase else 'no phase'} has started yet, so there is no log"
        )
    attempt = started[phase]
    if rank is None and (file := record.logs / f"{phase}-{attempt.job}.log").is_file():
        return file
    file = record.logs / f"{phase}.{attempt.number}.rank{rank or 0}.log"
    if not file.is_file():
        raise UserError(f"{file}: no such log; the attempt has ranks 0 to {attempt.tasks - 1}")
    return file


def task_log(record: Record, phase: str | None, number: int) -> Path:
    """The log of one task of a data job. Raises UserError if there is none yet."""
    from onediff.errors import UserError

    phases = [phase] if phase else [*reversed(record.plan()["phases"])]
    files = [record.logs / f"{name}.1.rank{number}.log" for name in phases]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"{files[-1]}: no such log; the task has not started or does not exist")
    return file

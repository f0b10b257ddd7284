"""Show the state of runs: phase, job, step, loss, time left, restarts and why.

onediff launch status              every run below runs/
onediff launch status runs/demo --watch
onediff launch status runs/demo-sweep      every run of a sweep
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="folder of one run or of several (default: runs)")
    parser.add_argument("--watch", action="store_true", help="refresh every few seconds until every run has ended")
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one line per refresh")


def run(args: argparse.Namespace) -> int:
    from launcher.follow import look, phase_states, table
    from launcher.goodput import in_words
    from launcher.local_chain import run_folder
    from launcher.record import Record

    folders = sorted(path.parents[1] for path in Path(args.run or "runs").glob("*/launch/plan.json"))
    if args.run and not folders:
        folders = [run_folder(args.run)]
    while True:
        began = time.monotonic()
        records = [Record(folder) for folder in folders]
        listed = look(records)
        states = {str(record.run): phase_states(record, listed) for record in records}
        if args.json:
            told = {folder: [asdict(row) for row in rows] for folder, rows in states.items()}
            print(json.dumps(told, indent=None if args.watch else 1))
        else:
            if args.watch and sys.stdout.isatty():
                print("\033[H\033[2J", end="")
            for folder, rows in states.items():
                print(f"{folder}\n{table(rows)}")
                spent = [(row.phase, in_words(Record(Path(folder)), row.phase)) for row in rows]
                print(*(f"{phase}: {text}" for phase, text in spent if text), "", sep="\n")
            if not folders:
                print("no runs in runs/; start one with `onediff launch submit`")
        going = any(state.state in ("running", "waiting") for rows in states.values() for state in rows)
        if not args.watch or not going:
            return 0
        sys.stdout.flush()
        # A controller that answers slowly is asked less often.
        time.sleep(min(60.0, max(5.0, 10 * (time.monotonic() - began))))

"""Explain what happened to a run: every attempt, how it ended, what the logs say, and what to do next.

onediff launch explain runs/demo
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of the run")


def run(args: argparse.Namespace) -> int:
    from launcher.follow import explanation
    from launcher.local_chain import run_folder
    from launcher.record import Record

    print(explanation(Record(run_folder(args.run))))
    return 0

"""Write a clean copy of a data set: every sample that 'onediff data check' finds no fault with, in new shards.

The first of repeated samples stays; images that another split has too leave the training split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.check import check_data_sets
from data_prep.repair import repair
from data_prep.report import show_reports
from data_prep.shards import data_sets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a data set, or the folder of its splits")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the clean copy goes")
    parser.add_argument("--processes", type=int, metavar="N", help="worker processes (default: all cores)")


def run(args: argparse.Namespace) -> None:
    manifests = data_sets(args.folder)
    outcome = check_data_sets(manifests, args.processes)
    for finding in outcome.faults:
        print(finding)
    print(show_reports(repair(manifests, outcome, args.out, args.processes)))

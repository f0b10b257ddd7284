"""Write a clean copy of a data set: the samples in which 'onediff data check' finds no fault, in new shards.

The first of repeated samples stays; samples whose images are also in another split leave the training split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.check import check_data_sets
from data_prep.repair import repair
from data_prep.report import show_reports
from data_prep.shards import data_sets
from onediff.amounts import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a data set")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the clean copy")
    parser.add_argument("--processes", type=at_least(1), metavar="N", help="worker processes (default: all cores)")


def run(args: argparse.Namespace) -> None:
    manifests = data_sets(args.folder)
    outcome = check_data_sets(manifests, args.processes)
    for finding in outcome.faults:
        print(finding)
    print(show_reports(repair(manifests, outcome, args.out, args.processes)))

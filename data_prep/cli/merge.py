"""Merge several data sets, split by split; repeated keys are renamed, and licences are counted.

onediff data merge data/mine data/theirs --out data/both
"""

from __future__ import annotations

import argparse

from data_prep.cli.copying import add_output, by_split, manifests_in, output
from data_prep.report import show_reports
from data_prep.selection import ShardPool
from onediff.amounts import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser, many=True)
    parser.add_argument(
        "--seed", type=at_least(0), metavar="N", help="shuffle with this seed (default: one data set after the other)"
    )


def run(args: argparse.Namespace) -> None:
    source = ShardPool(manifests_in(args.folder))
    chosen = by_split(source.known(args.processes))
    print(show_reports(source.write(chosen, args.out, note_licence=True, seed=args.seed, **output(args))))

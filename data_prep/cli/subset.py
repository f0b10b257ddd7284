"""Take a random subset of each split, in the original order; the same seed takes the same samples.

onediff data subset data/mine --count 1000 --out data/small
"""

from __future__ import annotations

import argparse

from data_prep.cli.copying import add_output, by_split, manifests_in, output
from data_prep.report import show_reports
from data_prep.selection import ShardPool
from data_prep.writer import shuffled
from onediff.amounts import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument(
        "--count", type=at_least(1), required=True, metavar="N", help="samples per split; all if it has fewer"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="seed of the choice (default: 0)")


def run(args: argparse.Namespace) -> None:
    source = ShardPool(manifests_in([args.folder]))
    chosen = {
        split: [samples[i] for i in sorted(shuffled(len(samples), args.seed)[: args.count])]
        for split, samples in by_split(source.known(args.processes)).items()
    }
    print(show_reports(source.write(chosen, args.out, **output(args))))

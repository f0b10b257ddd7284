"""Write the same samples into larger or smaller shards, or in another order.

onediff data reshard data/mine --shard-samples 5000 --seed 1 --out data/larger
"""

from __future__ import annotations

import argparse

from data_prep.cli.copying import add_output, by_split, manifests_in, output
from data_prep.report import show_reports
from data_prep.selection import ShardPool
from onediff.amounts import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument(
        "--seed", type=at_least(0), metavar="N", help="shuffle with this seed (default: keep the order)"
    )


def run(args: argparse.Namespace) -> None:
    source = ShardPool(manifests_in([args.folder]))
    print(show_reports(source.write(by_split(source.known(args.processes)), args.out, seed=args.seed, **output(args))))

"""Divide a data set into new splits: pairs that share an image, or a value of a column, stay together.

onediff data split data/mine --sizes train=0.9,val=0.05,test=0.05 --out data/parted
"""

from __future__ import annotations

import argparse

from data_prep.cli.copying import add_output, manifests_in, output
from data_prep.groups import image_groups, parted
from data_prep.report import show_reports
from data_prep.selection import SampleFacts, ShardPool
from data_prep.splits import SPLITS, check_split, split_counts
from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("--sizes", default=SPLITS, metavar="NAME=SHARE,…", help=f"the new splits (default: {SPLITS})")
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        help="keep samples with the same value together (default: samples that share an image)",
    )


def run(args: argparse.Namespace) -> None:
    source = ShardPool(manifests_in([args.folder]))
    samples = source.known(args.processes)
    if args.by and not any(args.by in known.columns for known in samples):
        raise UserError(f"--by {args.by}: no sample has this column")
    groups = (
        [str(known.columns.get(args.by, "")) for known in samples]
        if args.by
        else image_groups([known.images for known in samples])
    )
    chosen: dict[str, list[SampleFacts]] = {name: [] for name in split_counts(args.sizes, len(samples))}
    for name in chosen:
        check_split(name, "--sizes", (name,))
    for known, name in zip(samples, parted(groups, split_counts(args.sizes, len(samples))), strict=True):
        chosen[name].append(known)
    print(show_reports(source.write(chosen, args.out, **output(args))))

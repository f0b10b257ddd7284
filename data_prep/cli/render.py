"""Render scenes of a few solids: pairs with a known change and its exact description, and single images.

Writes the data sets DIR/pairs/<split>/ and DIR/singles/<split>/. The same seed gives the same bytes for any number of
processes. Splits share no scene.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.share import add_share
from data_prep.splits import SPLITS, split_counts
from onediff.amounts import at_least
from onediff.errors import UserError
from onediff.outputs import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the data sets")
    parser.add_argument("--pairs", type=at_least(0), default=0, metavar="N", help="total number of pairs")
    parser.add_argument("--singles", type=at_least(0), default=0, metavar="N", help="total number of single images")
    parser.add_argument(
        "--split-sizes", default=SPLITS, metavar="NAME=SIZE,…", help="sizes of the splits (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="seed of all random choices (default: 0)"
    )
    parser.add_argument("--size", type=int, metavar="PX", help="width and height of the images (default: 64)")
    parser.add_argument(
        "--scenes", type=Path, metavar="YAML", help="objects, changes, backgrounds, distractors, wording"
    )
    parser.add_argument(
        "--jpeg", type=at_least(0), default=0, metavar="QUALITY", help="write JPEG (default: PNG, lossless)"
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="also save the first pairs as one image")
    parser.add_argument("--processes", type=at_least(1), metavar="N", help="worker processes (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace data written with other options")
    add_share(parser)


def run(args: argparse.Namespace) -> None:
    # Imported here so that a launcher can check a command line on a login node quickly.
    from data_prep.report import show_reports
    from data_prep.scenes.config import ScenesConfig
    from data_prep.scenes.render import render_pair
    from data_prep.scenes.samples import PairMaker, Singles
    from data_prep.sheet import ON_A_SHEET, save_sheet
    from data_prep.synthetic import read_recipe, write_splits

    config = read_recipe(ScenesConfig, args.scenes, args.size)
    if not args.pairs + args.singles:
        raise UserError("give --pairs N, --singles N or both, at least 1")
    if not 0 <= args.jpeg <= 100:
        raise UserError(f"--jpeg {args.jpeg}: must be from 1 to 100")
    check_output(args.sheet, "--sheet")
    if args.sheet:
        split = next(iter(split_counts(args.split_sizes, 1)))
        first = PairMaker(args.seed, split, args.jpeg, config.of(split))
        save_sheet((render_pair(first.config, first.series, index) for index in range(ON_A_SHEET)), args.sheet)
    for name, maker, count in (("pairs", PairMaker, args.pairs), ("singles", Singles, args.singles)):
        counts = split_counts(args.split_sizes, count)
        reports = write_splits(
            {split: maker(args.seed, split, args.jpeg, config.of(split)) for split in counts},
            counts,
            args.out / name,
            name,
            source="scenes",
            licence="CC0-1.0",
            processes=args.processes,
            overwrite=args.overwrite,
            share=args.share,
        )
        if reports:
            print(f"{args.out / name}\n{show_reports(reports)}")

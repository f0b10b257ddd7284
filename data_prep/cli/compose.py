"""Make pairs from photographs and cut-outs: each has one known change, an exact description, masks and boxes.

With --singles instead of --pairs, makes single images whose captions name every object and its place.

Backgrounds are photographs and videos; cut-outs are named images with transparency. By default, scikit-image's photographs
and rendered solids are used. Writes DIR/<split>/ for each split; splits share no background.
With the Debian packages opencv-doc and tuxpaint-stamps-default:

  onediff data compose --backgrounds /usr/share/doc/opencv-doc/examples/data \\
      --cutouts /usr/share/tuxpaint/stamps --pairs 10000 --out DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.share import add_share
from data_prep.splits import SPLITS, split_counts
from onediff.amounts import at_least
from onediff.errors import UserError
from onediff.outputs import check_output

if TYPE_CHECKING:
    from data_prep.compose.library import SearchResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the data set")
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("--pairs", type=at_least(1), metavar="N", help="total number of pairs")
    made.add_argument("--singles", type=at_least(1), metavar="N", help="make single images instead; their total number")
    parser.add_argument("--backgrounds", type=Path, nargs="+", default=[], metavar="PATH", help="files or folders")
    parser.add_argument("--cutouts", type=Path, nargs="+", default=[], metavar="PATH", help="files or folders")
    parser.add_argument("--licence", default="", help="licence of the result, for the manifest")
    parser.add_argument(
        "--split-sizes", default=SPLITS, metavar="NAME=SIZE,…", help="sizes of the splits (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="seed of all random choices (default: 0)"
    )
    parser.add_argument("--size", type=int, metavar="PX", help="width and height of the images (default: 256)")
    parser.add_argument("--recipe", type=Path, metavar="YAML", help="objects, changes, blending, distractors, wording")
    parser.add_argument(
        "--jpeg", type=at_least(0), default=92, metavar="QUALITY", help="JPEG quality; 0 for PNG (default: %(default)s)"
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="also save the first pairs as one image (with --pairs)"
    )
    parser.add_argument("--processes", type=at_least(1), metavar="N", help="worker processes (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace data written with other options")
    add_share(parser)


def run(args: argparse.Namespace) -> None:
    # Imported here so that a launcher can check a command line on a login node quickly.
    from data_prep.compose.config import ComposeConfig
    from data_prep.compose.library import Library, deal, find_backgrounds, find_cutouts
    from data_prep.compose.pair import compose_pair
    from data_prep.compose.samples import ComposedPairs, ComposedSingles
    from data_prep.report import show_reports
    from data_prep.sheet import ON_A_SHEET, save_sheet
    from data_prep.synthetic import read_recipe, write_splits

    config = read_recipe(ComposeConfig, args.recipe, args.size)
    maker = ComposedPairs if args.pairs is not None else ComposedSingles
    number = args.pairs if args.pairs is not None else args.singles
    if args.sheet and args.pairs is None:
        raise UserError("--sheet shows pairs only; view single images with 'onediff data show'")
    if not 0 <= args.jpeg <= 100:
        raise UserError(f"--jpeg {args.jpeg}: must be from 1 to 100, or 0 for PNG")
    check_output(args.sheet, "--sheet")
    counts = split_counts(args.split_sizes, number)
    backgrounds, cutouts = find_backgrounds(args.backgrounds), find_cutouts(args.cutouts)
    print(f"backgrounds: {len(backgrounds.backgrounds):,}{_aside(backgrounds)}")
    print(f"cut-outs: {len(cutouts.cutouts):,}{_aside(cutouts)}", flush=True)
    dealt = deal(backgrounds.backgrounds, counts)
    makers = {
        split: maker(args.seed, split, args.jpeg, config, Library(dealt[split], tuple(cutouts.cutouts)))
        for split in counts
    }
    if args.sheet:
        first = next(iter(makers.values()))
        save_sheet((compose_pair(config, first.library, first.series, i) for i in range(ON_A_SHEET)), args.sheet)
    reports = write_splits(
        makers,
        counts,
        args.out,
        "composed",
        source="composed",
        licence=args.licence,
        processes=args.processes,
        overwrite=args.overwrite,
        share=args.share,
    )
    print(show_reports(reports))


def _aside(found: SearchResult) -> str:
    """The files that were not used, and why."""
    left = [f"{number:,} {reason}" for reason, number in sorted(found.aside.items()) if number]
    return f" (left out: {', '.join(left)})" if left else ""

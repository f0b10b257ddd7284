"""Find pairs of similar photographs in a folder, for captions by people or by 'onediff data caption'.

Writes a table with before, after and similarity. Pictures that are nearly the same count once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.retrieve import embed, neighbours, pictures_in, write_pairs
from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", type=Path, metavar="DIR", help="folder of pictures")
    add("--model", required=True, help="Hugging Face vision model, by name or folder")
    add("--out", type=Path, required=True, metavar="FILE.csv", help="the table to write")
    add("--low", type=float, default=0.7, help="least cosine similarity of a pair (default: 0.7)")
    add("--high", type=float, default=0.95, help="above this, pictures are near-duplicates (default: 0.95)")
    add("--nearest", type=int, default=20, metavar="K", help="neighbours to look at (default: 20)")
    add("--each", type=int, default=2, metavar="N", help="most pairs that a picture is in (default: 2)")


def run(args: argparse.Namespace) -> None:
    if not -1 <= args.low < args.high <= 1:
        raise UserError(f"--low {args.low} --high {args.high}: must be cosines, the first the smaller")
    names = pictures_in(args.images)
    vectors, read = embed(args.images, names, args.model)
    pairs = list(neighbours(vectors, args.low, args.high, args.nearest, args.each))
    if not pairs:
        raise UserError(f"{args.images}: no two pictures have a similarity from {args.low} to {args.high}")
    write_pairs(args.out, read, pairs)
    print(f"{args.out}: {len(pairs):,} pairs of {len(read):,} pictures ({len(names) - len(read):,} cannot be read)")

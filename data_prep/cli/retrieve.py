"""Find pairs of similar photographs in a folder, for captions by people or by 'onediff data caption'.

Writes a table with before, after and similarity. Near-duplicate images count once. With captions of the single images, the
table is the input of `onediff data caption generic --prompt pair`, which has a language model caption the pairs:

  onediff data retrieve photos --model openai/clip-vit-base-patch32 --captions photos.csv --out pairs.csv
  onediff data caption generic --table pairs.csv --prompt pair --model gpt-4o-mini --out captioned.jsonl
  onediff data convert generic --table captioned.jsonl --images photos --out data/retrieved
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.readers import Inputs, reader
from data_prep.retrieve import captions_of, find_pairs
from onediff.amounts import at_least
from onediff.errors import UserError
from onediff.outputs import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", type=Path, metavar="DIR", help="folder of images")
    add("--model", required=True, help="Hugging Face vision model, by name or folder")
    add("--out", type=Path, required=True, metavar="FILE.csv", help="the table to write")
    add("--captions", type=Path, metavar="TABLE", help="captions of the single images: columns image and caption")
    add("--captions-reader", default="generic", metavar="NAME", help="reader of that table, such as llava-558k")
    add("--low", type=float, default=0.7, metavar="COSINE", help="minimum similarity of a pair (default: 0.7)")
    add(
        "--high",
        type=float,
        default=0.95,
        metavar="COSINE",
        help="above this, images are near-duplicates (default: 0.95)",
    )
    add("--nearest", type=at_least(1), default=20, metavar="K", help="nearest neighbours to consider (default: 20)")
    add("--each", type=at_least(1), default=2, metavar="N", help="maximum pairs per image (default: 2)")


def run(args: argparse.Namespace) -> None:
    if not -1 <= args.low < args.high <= 1:
        raise UserError(f"--low {args.low} --high {args.high}: must be cosines, and --low below --high")
    check_output(args.out, "--out")
    known = None
    if args.captions:
        known = captions_of(reader(args.captions_reader).rows(Inputs(args.captions, args.images)))
    band = {"low": args.low, "high": args.high, "nearest": args.nearest, "each": args.each}
    found = find_pairs(args.images, args.out, args.model, **band, captions=known)
    left_out = f"; {found.uncaptioned:,} pairs without captions left out" if found.uncaptioned else ""
    print(
        f"{args.out}: {found.pairs:,} pairs of {found.images:,} images ({found.unreadable:,} cannot be read){left_out}"
    )

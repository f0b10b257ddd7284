"""Convert a data set in its own layout, or your own table of pairs, to shards: DIR/<split>/ with a manifest.

Unusable rows (no caption, a missing or corrupt image) are skipped, counted by reason and named in the final table. With
--strict, the first one stops the conversion; more than --max-skipped make it fail. A table that cannot be read, a path
outside the image folder, and a pair of your own table that is both in train and in another split always stop it. Run the
same command again to resume after an interruption.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from data_prep.readers import BUILT_IN, Inputs, reader
from data_prep.share import add_share
from data_prep.skipping import MaxSkipped, max_skipped
from data_prep.workers import add_workers
from onediff.amounts import at_least
from onediff.cli.output import add_json, with_json
from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", help=f"the data set: {', '.join(BUILT_IN)}, or one that an installed package adds")
    add("path", nargs="?", type=Path, help="same as --annotations; for hf also a data set on the hub, OWNER/NAME")
    add(
        "--annotations",
        "--table",
        dest="annotations",
        type=Path,
        metavar="PATH",
        help="annotation file, folder or table",
    )
    add(
        "--images",
        type=Path,
        metavar="PATH",
        help="folder, tar or zip of images (generic: default is the table's folder)",
    )
    add("--out", type=Path, metavar="DIR", help="folder for the splits, one subfolder each")
    add("--layout", action="store_true", help="print which files the data set's reader expects, and exit")
    add("--splits", "--split", type=lambda text: text.split(","), default=[], metavar="A,B", help="only these splits")
    add(
        "--columns",
        default="",
        metavar="MEANING=COLUMN,…",
        help="names of a table's columns, such as before=left_image; id= means that no column is the id",
    )
    add(
        "--fetch",
        type=lambda text: tuple(text.lower().split(",")),
        default=(),
        metavar="HOST,…",
        help="fetch images from URLs on these hosts (any: all hosts with public addresses)",
    )
    add("--dataset-name", metavar="NAME", help="name in the manifest and of the shards (default: the reader's)")
    add("--licence", metavar="TEXT", help="licence in the manifest (default: the reader's)")
    add("--source", metavar="TEXT", help="source in the manifest (default: the reader's)")
    add(
        "--hold-out",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="move this fraction of the training pairs to test, keeping pairs that share an image together",
    )
    add("--hold-out-by", metavar="COLUMN", help="with --hold-out: rows with the same value in COLUMN stay together")
    add("--allow-leakage", action="store_true", help="accept pairs that are both in train and in another split")
    add_writing(parser)


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Adds the options for unusable rows, images and shards."""
    add = parser.add_argument
    add("--strict", action="store_true", help="stop at the first unusable row")
    add(
        "--max-skipped",
        type=max_skipped,
        default=MaxSkipped(),
        metavar="SHARE",
        help="fail if more rows than this are unusable, such as 1%% or 200 (default: 10%%, but at least 10 rows)",
    )
    add("--max-side", type=at_least(1), metavar="PIXELS", help="shrink images whose longer side exceeds this")
    add("--encode", choices=("keep", "jpg", "png", "webp"), default="keep", help="re-encode all images (default: keep)")
    add("--quality", type=at_least(1), default=95, metavar="N", help="quality of encoded JPEG and WebP (default: 95)")
    add("--decode", action="store_true", help="decode every image to find damage (slower; 'data check' also does it)")
    add(
        "--shard-samples", type=at_least(1), default=1000, metavar="N", help="maximum samples per shard (default: 1000)"
    )
    add("--shard-mb", type=at_least(1), default=1024, metavar="N", help="maximum megabytes per shard (default: 1024)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="seed of the order of samples (default: 0)")
    add_workers(parser)
    add("--overwrite", action="store_true", help="replace existing splits")
    add_json(parser, "the final table", file="--report")
    add_share(parser)


def run(args: argparse.Namespace) -> int:
    if args.annotations and args.path:
        hint = "; --json prints, --report FILE writes" if args.json else ""
        raise UserError(f"{args.path}: the data set is named twice, here and with --annotations{hint}")
    return with_json(args, converted)


def converted(args: argparse.Namespace) -> tuple[int, list[dict[str, Any]]]:
    """Prints the final table, or the layout; returns the results of each split for JSON."""
    # Imported here so that a launcher can check a command line on a login node quickly.
    from data_prep.convert import convert
    from data_prep.images import Encoding
    from data_prep.plan import Choices
    from data_prep.report import show_reports

    chosen = reader(args.name)
    if args.layout:
        print(f"{chosen.name}: {chosen.summary}\n  {chosen.layout}\n  from {chosen.source or 'you'}")
        return 0, []
    if args.out is None:
        raise UserError("--out: name the folder for the shards")
    args.annotations = args.annotations or args.path
    if args.name == "hf" and args.annotations and not is_here(args.annotations):
        from data_prep.readers.hf import fetched

        args.annotations = fetched(str(args.annotations))
    if args.annotations is None and args.images is None:
        raise UserError(f"--annotations or --images: name the data set's files; {chosen.name} expects {chosen.layout}")
    check_paths(args)
    table = args.annotations
    images = args.images or (table if table.is_dir() else table.parent)
    named = {"name": args.dataset_name, "licence": args.licence, "source": args.source}
    chosen = dataclasses.replace(chosen, **{key: value for key, value in named.items() if value})
    reports = convert(
        chosen,
        Inputs(table, images, columns_of(args.columns), args.fetch),
        args.out,
        choices=Choices(args.splits, args.hold_out, args.hold_out_by, args.allow_leakage),
        encoding=Encoding(args.max_side, args.encode, args.quality, args.decode),
        shard_samples=args.shard_samples,
        shard_bytes=args.shard_mb << 20,
        seed=args.seed,
        processes=args.processes,
        strict=args.strict,
        max_skipped=args.max_skipped,
        overwrite=args.overwrite,
        share=args.share,
    )
    print(show_reports(reports))
    return 0, [report.fields() for report in reports]


def check_paths(args: argparse.Namespace) -> None:
    """Raises UserError for impossible paths and numbers."""
    for option in ("annotations", "images"):
        path = getattr(args, option)
        if path is not None and not (args.name == "hf" and option == "annotations") and not path.exists():
            typed = "table" if option == "annotations" and args.name == "generic" else option
            raise UserError(f"{path}: no such file or folder (--{typed})")
    if not 0 <= args.hold_out < 1:
        raise UserError(f"--hold-out {args.hold_out}: must be a fraction between 0 and 1")
    if args.hold_out_by and not args.hold_out:
        raise UserError("--hold-out-by: also set --hold-out FRACTION")
    if args.dataset_name and not args.dataset_name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"--dataset-name {args.dataset_name!r}: use letters, digits, - and _ only")


def is_here(path: Path) -> bool:
    """Whether a path, or a pattern such as `data/train-*.parquet`, exists on this machine."""
    return path.exists() or any(path.parent.glob(path.name))


def columns_of(text: str) -> dict[str, str]:
    """Parses `before=left,id=` into a mapping; an empty name means that there is no such column. Raises UserError."""
    columns = {}
    for part in filter(None, text.split(",")):
        meaning, sign, column = part.partition("=")
        if not sign or not meaning.strip():
            raise UserError(f"--columns {part!r}: write MEANING=COLUMN, such as before=left_image")
        columns[meaning.strip()] = column.strip()
    return columns

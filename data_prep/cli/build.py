"""Build a collection of data sets, such as DiffCap, from the raw files at hand; rerun it after adding more.

Prints a table of published and actual counts, and the lines for a run's configuration. The exit code is 1 if a part is
missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.share import add_share
from onediff.amounts import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="YAML", help="the collection, such as configs/diffcap.yaml")
    parser.add_argument("--processes", type=at_least(1), metavar="N", help="worker processes (default: all cores)")
    add_share(parser)


def run(args: argparse.Namespace) -> int:
    # Imported here so that a launcher can check a command line on a login node quickly.
    from data_prep.build import build, show_collection
    from onediff.config.collection import Collection
    from onediff.config.compose import find
    from onediff.config.section import validated
    from onediff.config.yaml_file import read_mapping

    collection = validated(Collection, read_mapping(find(str(args.file), Path.cwd())), str(args.file))
    built = build(collection, args.processes, share=args.share)
    print(show_collection(collection, built))
    return 0 if all(part.samples for part in built.values()) else 1

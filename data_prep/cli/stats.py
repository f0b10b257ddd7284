"""Say what is in a data set: counts, sizes of pictures, lengths of captions, kinds of change."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_prep.shards import data_sets
from data_prep.stats import data_set_stats, show_stats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a data set, or the folder of its splits")
    parser.add_argument("--processes", type=int, metavar="N", help="worker processes (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the statistics as JSON")


def run(args: argparse.Namespace) -> None:
    found = data_set_stats(data_sets(args.folder), args.processes)
    print(show_stats(found))
    if args.json:
        fields = {split: stats.fields() for split, stats in found.items()}
        args.json.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")

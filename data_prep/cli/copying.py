"""Options and output shared by the commands that make data sets from others: merge, subset, filter, reshard, split."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.report import counted
from data_prep.selection import SampleFacts
from data_prep.shards import data_sets
from data_prep.workers import add_workers
from onediff.amounts import at_least
from onediff.data.manifest import Manifest
from onediff.outputs import write_text


def add_output(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Adds the options for the input data sets and for writing the new one."""
    parser.add_argument(
        "folder", nargs="+" if many else None, metavar="DIR", help="a data set, or the folder of its splits"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the splits")
    parser.add_argument(
        "--dataset-name", default="", metavar="NAME", help="name of the new data set (default: the old one's)"
    )
    parser.add_argument(
        "--shard-samples", type=at_least(1), default=1000, metavar="N", help="maximum samples per shard (default: 1000)"
    )
    parser.add_argument(
        "--shard-mb", type=at_least(1), default=1024, metavar="N", help="maximum megabytes per shard (default: 1024)"
    )
    add_workers(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace existing splits")


def output(args: argparse.Namespace) -> dict[str, Any]:
    """The options for `ShardPool.write`."""
    return {
        "name": args.dataset_name,
        "shard_samples": args.shard_samples,
        "shard_bytes": args.shard_mb << 20,
        "processes": args.processes,
        "overwrite": args.overwrite,
    }


def manifests_in(folders: Sequence[str]) -> list[Manifest]:
    """The manifests of all splits of these data sets. Raises UserError."""
    return [manifest for folder in folders for manifest in data_sets(folder)]


def by_split(samples: Sequence[SampleFacts]) -> dict[str, list[SampleFacts]]:
    """The samples of each split, in the order in which splits first appear."""
    found: dict[str, list[SampleFacts]] = {}
    for known in samples:
        found.setdefault(known.split, []).append(known)
    return found


def tell_removed(removed: Mapping[str, Sequence[tuple[SampleFacts, str]]], out: Path) -> None:
    """Prints how many samples each filter removed, and lists them in `out/removed.jsonl` with the reason."""
    lines = []
    for name, samples in removed.items():
        print(f"{name}: removed {counted(len(samples), 'sample')}")
        for known, reason in samples:
            lines.append(
                {"split": known.split, "key": known.key, "id": known.columns["id"], "filter": name, "reason": reason}
            )
    write_text(out / "removed.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

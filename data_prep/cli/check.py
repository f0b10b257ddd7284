"""Verify a data set: checksums, indexes, records, captions, images, repeated samples, leakage between splits.

Every finding names the shard and the key. The exit code is 1 if there are faults, else 0; remarks do not count.
"""

from __future__ import annotations

import argparse
from typing import Any

from data_prep.check import check_data_sets
from data_prep.report import counted
from data_prep.shards import data_sets
from data_prep.workers import add_workers
from onediff.amounts import at_least
from onediff.cli.output import add_json, with_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a data set, on disk or at a URL")
    parser.add_argument("--no-pixels", action="store_true", help="read only the headers of images (much faster)")
    parser.add_argument("--limit", type=at_least(0), default=50, metavar="N", help="findings to print (default: 50)")
    add_workers(parser)
    add_json(parser, "all findings")


def run(args: argparse.Namespace) -> int:
    return with_json(args, checked)


def checked(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Prints the findings; returns the exit code and all findings for JSON."""
    outcome = check_data_sets(data_sets(args.folder), args.processes, not args.no_pixels)
    for finding in outcome.findings[: args.limit]:
        print(finding)
    if len(outcome.findings) > args.limit:
        print(f"… and {len(outcome.findings) - args.limit:,} more (--limit N, --out FILE)")
    for split, checks in outcome.checks.items():
        print(
            f"{split}: {counted(sum(check.samples for check in checks), 'sample')} in {counted(len(checks), 'shard')}"
        )
    faults = len(outcome.faults)
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(outcome.counts().items()))
    remarks = counted(len(outcome.findings) - faults, "remark")
    print(f"{counted(faults, 'fault')}, {remarks}{f': {kinds}' if kinds else ''}")
    return (1 if faults else 0), outcome.fields()

"""What differs between two runs, in configuration, data and code, beside what differs in results.

onediff runs diff runs/base runs/low-rate
onediff runs diff runs/base runs/low-rate --json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from onediff.errors import UserError
from onediff.tracking.overview import differences, is_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("one", type=Path, metavar="A", help="folder of a run")
    parser.add_argument("other", type=Path, metavar="B", help="folder of another run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    for folder in (args.one, args.other):
        if not is_run(folder):
            raise UserError(f"{folder}: not the folder of a run (neither status.json nor tracking/run.json)")
    found = differences(args.one, args.other)
    if args.json:
        print(json.dumps(found, indent=1, default=str))
        return
    width = max((len(key) for keys in found.values() for key in keys), default=0)
    for heading, keys in found.items():
        print(heading if keys else f"{heading}: the same")
        for key, (one, other) in keys.items():
            print(f"  {key:<{width}}  {shown(one)}  →  {shown(other)}{change(one, other)}")


def shown(value: Any) -> str:
    """A value in a line; `-` for one that only the other run has."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def change(one: Any, other: Any) -> str:
    """How much a number grew or shrank."""
    both = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    return f"  ({100 * (other - one) / abs(one):+.1f} %)" if both and one else ""

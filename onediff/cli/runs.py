"""List runs: state, phase, step, loss, CIDEr, pace and job.

  onediff runs                  all runs in ./runs
  onediff runs /shared/runs     all runs in that folder, or the run itself
  onediff runs --json

The list comes from the runs' folders alone, not from MLflow.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from onediff.columns import in_columns
from onediff.tracking.overview import Overview, overview, run_folders

HEAD = ("run", "state", "phase", "step", "loss", "CIDEr ×100", "tokens/s", "job", "last heard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="a folder of runs, or one run (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    found = [overview(folder) for folder in run_folders(args.folder)]
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    print("\n".join(in_columns([HEAD, *map(row, found)])))


def row(one: Overview) -> tuple[str, ...]:
    """The cells of one run."""
    step = f"{one.step}/{one.steps}" if one.steps else str(one.step)
    cider = next((value for key, value in one.scores.items() if key.rpartition(".")[2].lower() == "cider"), None)
    return (
        one.name,
        one.state or "-",
        one.phase or "-",
        step,
        number(one.metrics.get("loss"), 4),
        number(None if cider is None else 100 * cider, 1),
        number(one.metrics.get("tokens_per_second"), 0),
        one.jobs or "-",
        ago(time.time() - one.updated) if one.updated else "-",
    )


def number(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ago(seconds: float) -> str:
    """A duration as people write it."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"

"""Compare two runs: results, then settings, data and code.

  onediff runs diff runs/base runs/low-rate
  onediff runs diff runs/base runs/low-rate --all       every metric, not only loss, pace and scores
  onediff runs diff runs/base runs/low-rate --json

Scores on the same data set and split are printed side by side, times 100 as in papers, with phase and step if they differ.
JSON has the fractions, as `scores.json` does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onediff.config.difference import Differences, in_one_line
from onediff.errors import UserError
from onediff.tracking.overview import differences, earlier_settings, is_run

USUAL = ("loss", "step", "tokens_per_second")
"""The metrics of a phase that matter in most comparisons."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("one", type=Path, metavar="A", help="folder of a run")
    parser.add_argument("other", type=Path, metavar="B", help="folder of another run")
    parser.add_argument("--all", action="store_true", help="show every metric")
    parser.add_argument("--json", action="store_true", help="print JSON, always with every metric")


def run(args: argparse.Namespace) -> None:
    runs = (args.one, args.other)
    for folder in runs:
        if not is_run(folder):
            lacks = "not the folder of a run (neither status.json nor tracking/run.json)"
            raise UserError(f"{folder}: {lacks if folder.is_dir() else 'no such folder'}")
    found = differences(*runs)
    earlier = {str(folder): files for folder in runs if (files := earlier_settings(folder))}
    if args.json:
        print(json.dumps({**found, "earlier": earlier}, indent=1, default=str))
        return
    weights = taken(found["results"], lambda key: is_score(key) and key.endswith(": weights"))
    left_out = 0 if args.all else len(taken(found["results"], lambda key: not is_usual(key)))
    width = max((len(key) for keys in found.values() for key in keys), default=0)
    for heading, keys in found.items():
        print(heading if keys or (heading == "results" and left_out) else f"{heading}: the same")
        for key, pair in keys.items():
            one, other = (shown(value) for value in pair)
            if heading == "results" and is_score(key):
                at = weights.get(f"{key.rpartition(': ')[0]}: weights", ("", ""))
                one, other = (score(value, step) for value, step in zip(pair, at, strict=True))
            print(f"  {key:<{width}}  {one}  →  {other}{change(*pair)}")
        if heading == "results" and left_out:
            print(f"  and {left_out} other metrics (--all shows them)")
        if heading == "configuration":
            for folder, files in earlier.items():
                for file, then in files.items():
                    print(f"  {folder} had the settings of {file} first, then {in_one_line(then)}")


def taken(results: Differences, which: Callable[[str], bool]) -> Differences:
    """Removes the keys that satisfy `which` from `results` and returns them."""
    return {key: results.pop(key) for key in list(results) if which(key)}


def is_usual(key: str) -> bool:
    """Whether this result matters in most comparisons."""
    return is_score(key) or key.rpartition(": ")[2] in USUAL


def is_score(key: str) -> bool:
    """Whether a result is from an evaluation."""
    title, _, metric = key.rpartition(": ")
    return title.startswith("evaluation") or metric.startswith("evaluation/")


def score(value: Any, weights: str | None) -> str:
    """A score times 100, with the phase and step of its weights."""
    return "-" if value is None else f"{100 * value:.1f}" + (f" ({weights})" if weights else "")


def shown(value: Any) -> str:
    """A value on one line; `-` if only the other run has it."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def change(one: Any, other: Any) -> str:
    """The relative change in percent; empty if the first number is practically 0."""
    both = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    return f"  ({100 * (other - one) / abs(one):+.1f} %)" if both and abs(one) > 1e-6 else ""

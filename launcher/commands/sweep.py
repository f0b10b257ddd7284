"""Queue one run for every combination of values, at most so many at a time.

  onediff launch sweep configs/demo.yaml model.delta.tokens=16,32,64 optimizer.lr=1e-3,3e-4 --at-most 2 --profile my-cluster

A key with several values, commas between, is varied; one with a single value is the same in every run. The runs lie below
runs/<name>-sweep/ and in one MLflow experiment of that name; `onediff runs runs/<name>-sweep` compares them.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="+", metavar="a.b=c,d,e", help="values; those with commas are varied")
    parser.add_argument("--at-most", type=int, default=4, metavar="N", help="runs at a time (default: 4)")
    parser.add_argument("--nodes", default="1", metavar="N|N-M", help="nodes of one run")
    parser.add_argument("--profile", default="default", metavar="NAME|FILE", help="the cluster (default: 'default')")
    parser.add_argument("--phases", metavar="A,B", help="only these phases (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="print the runs; write and queue nothing")


def run(args: argparse.Namespace) -> int:
    from launcher.commands.submit import submit
    from launcher.profile import load_profile
    from launcher.record import Record
    from onediff.config.compose import load_run

    if args.at_most < 1:
        raise UserError(f"--at-most {args.at_most}: must be at least 1")
    fixed, varied = split_overrides(args.overrides)
    name = f"{load_run(args.config, fixed).name}-sweep"
    profile = load_profile(args.profile)
    points = combinations(varied)
    # Every combination is checked before the first is queued.
    configs = [
        load_run(args.config, [*fixed, *point, f"name={slug(point)}", f"tracking.experiment={name}"])
        for point in points
    ]
    if args.dry_run:
        print("\n".join(" ".join(point) for point in points))
        return 0
    # One queue for each run that may go on at a time: the next run of a queue waits for the end of the one before.
    last: list[str | None] = [None] * args.at_most
    for number, (config, point) in enumerate(zip(configs, points, strict=True)):
        folder = (Path("runs") / name / config.name).resolve()
        print(f"{' '.join(point)}:")
        queue = number % args.at_most
        submit(config, folder, profile, args.nodes, args.phases, new_code=True, behind=last[queue])
        last[queue] = next(reversed(Record(folder).latest_jobs().values()), None)
    print(f"\n{len(points)} runs, at most {args.at_most} at a time; compare them with: onediff runs runs/{name}")
    return 0


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The overrides with one value, and for each with several the list of `key=value`."""
    fixed, varied = [], []
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"{override}: a value reads key.subkey=value, several read key.subkey=a,b,c")
        values = re.findall(r"(?:[^,\[{]|\[[^\]]*\]|\{[^}]*\})+", text)  # a list in brackets is one value
        if len(values) > 1:
            if len(set(values)) < len(values):
                raise UserError(f"{override}: a value stands there twice")
            varied.append([f"{key}={value}" for value in values])
        else:
            fixed.append(override)
    if not varied:
        raise UserError("nothing to vary: give at least one key several values, such as optimizer.lr=1e-3,1e-4")
    return fixed, varied


def combinations(varied: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Every choice of one value per key, the last key fastest."""
    return list(itertools.product(*varied))


def slug(point: Sequence[str]) -> str:
    """A plain name of one combination: `delta.tokens=16` and `lr=1e-3` make `tokens-16.lr-1e-3`."""
    words = []
    for choice in point:
        key, _, value = choice.partition("=")
        words.append(f"{key.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9.]+', '-', value).strip('-')}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ".".join(words))[:100]

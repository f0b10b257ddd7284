"""Queue a configuration as a chain of jobs: every phase, then the evaluation.

onediff launch submit configs/onediff_7b.yaml --nodes 8 --profile my-cluster
onediff launch submit configs/onediff_7b.yaml --nodes 4-8 --profile infiniband optimizer.lr=3e-4 --dry-run
onediff launch submit configs/demo.yaml --profile local
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from onediff.amounts import at_least

if TYPE_CHECKING:
    from launcher.submission import Submission


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")
    parser.add_argument(
        "--nodes", default="1", metavar="N|N-M", help="nodes; with a range, each start takes the free ones (default: 1)"
    )
    parser.add_argument(
        "--spares",
        type=at_least(0),
        default=0,
        metavar="N",
        help="additional standby nodes that replace failed ones (default: 0)",
    )
    parser.add_argument("--profile", default="default", metavar="NAME|FILE", help="the cluster (default: 'default')")
    parser.add_argument("--phases", metavar="A,B", help="only these phases; 'evaluate' is one (default: all)")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the run (default: runs/<name>)")
    parser.add_argument("--comment", metavar="TEXT", help="comment that Slurm shows with the jobs")
    parser.add_argument(
        "--no-memory-check", action="store_true", help="queue phases even if they are not expected to fit"
    )
    parser.add_argument("--no-weights-check", action="store_true", help="let the nodes download missing models")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print scripts or local commands, and missing inputs; write and start nothing",
    )


def run(args: argparse.Namespace) -> int:
    from launcher.profile import load_profile
    from launcher.submission import Submission
    from onediff.config.compose import load_run

    config = load_run(args.config, args.overrides)
    run_path = (args.run or Path("runs") / config.name).resolve()
    asked = Submission(
        config,
        run_path,
        load_profile(args.profile, run_path),
        args.nodes,
        args.phases,
        spares=args.spares,
        comment=args.comment,
        memory_check=not args.no_memory_check,
        weights_check=not args.no_weights_check,
        said=[args.config, *args.overrides],
    )
    return submit(asked, args.dry_run)


def submit(asked: Submission, dry_run: bool = False) -> int:
    """Check, freeze and queue a run, and print what to run next. Returns the exit code."""
    from launcher.submission import checked, queue, run_here

    ready = checked(asked, dry_run)
    if not ready.phases:
        print(f"{asked.run}: all requested phases have finished")
        return 0
    is_local = ready.profile.scheduler == "local"
    if dry_run:
        print(*(ready.commands() if is_local else ready.scripts()), sep="\n")
        return 0
    if is_local:
        return run_here(ready)
    for name, job in queue(ready):
        print(f"{name:<12} job {job}")
    print(f"\nonediff launch status {asked.run} --watch\nonediff launch logs {asked.run} -f")
    return 0

"""Search for good settings: Optuna proposes values, and runs that fall behind are ended early.

  onediff launch search configs/demo.yaml optimizer.lr=1e-4..3e-3:log phases.two.validate_every=100 \\
      --metric validation/loss --trials 12 --profile local
  onediff launch search configs/onediff_7b.yaml optimizer.lr=1e-6..1e-4:log model.delta.tokens=16,32,64 \\
      --metric CIDEr --nodes 8 --trials 20 --at-most 4

`key=low..high` is a range (of integers if both bounds are integers), `key=low..high:log` a range on a logarithmic scale,
`key=a,b,c` a choice; a key with a single value is the same in every run. The runs are in runs/<name>-search/ and under one
MLflow run of that name; table.txt in that folder lists them, best first. The command stays in the foreground. Repeat it to
continue after an interruption: runs on Slurm are not affected, local runs resume from their checkpoints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from onediff.amounts import amount, at_least
from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="+", metavar="a.b=low..high", help="ranges, choices and fixed values")
    parser.add_argument("--metric", required=True, help="a score of the evaluation, or a metric of the last phase")
    parser.add_argument(
        "--direction", choices=("lower", "higher"), help="which is better (default: lower for a loss, else higher)"
    )
    parser.add_argument(
        "--trials", type=at_least(1), default=20, metavar="N", help="total number of runs (default: 20)"
    )
    parser.add_argument("--at-most", type=at_least(1), default=4, metavar="N", help="runs at once (default: 4)")
    parser.add_argument("--no-pruning", action="store_true", help="let every run finish")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the proposals (default: 0)")
    parser.add_argument("--nodes", default="1", metavar="N|N-M", help="nodes per run (default: 1)")
    parser.add_argument("--profile", default="default", metavar="NAME|FILE", help="the cluster (default: 'default')")
    parser.add_argument("--name", help="name of the search (default: <name of the run>-search)")
    parser.add_argument("--pause", type=amount, default=15, metavar="SECONDS", help="polling interval (default: 15)")


def run(args: argparse.Namespace) -> int:
    from launcher.plan import asked_nodes
    from launcher.profile import load_profile
    from launcher.search import Goal, Search, open_study, require_same, table
    from launcher.space import split_space
    from launcher.trial import starter
    from onediff.atomic import write_whole
    from onediff.config.compose import load_run

    fixed, space = split_space(args.overrides)
    base = load_run(args.config, fixed)
    last = list(base.phases)[-1]
    if args.metric.startswith("validation/") and base.phases[last].validate_every is None:
        raise UserError(
            f"--metric {args.metric}: phase {last} does not measure it; add phases.{last}.validate_every=100"
        )
    name = args.name or f"{base.name}-search"
    check_ends(args.config, fixed, [choice.ends() for choice in space])
    profile = load_profile(args.profile)
    asked_nodes(args.nodes, profile)
    goal = Goal(args.metric, last, args.direction or ("lower" if "loss" in args.metric else "higher"))
    folder = (Path("runs") / name).resolve()
    study = open_study(folder, goal, args.seed, pruning=not args.no_pruning)
    require_same(study, folder, base, space)
    print(f"{args.trials} runs in {folder}; a {goal.better} {goal.metric} is better", flush=True)
    start = starter(args.config, fixed, name, profile, args.profile, args.nodes)
    search = Search(study, folder, goal, space, start, args.at_most, args.trials)
    try:
        search.run(args.pause)
    except KeyboardInterrupt:
        print(f"queued runs continue; follow them with `onediff launch status runs/{name}`, and continue with the same")
        raise
    finally:
        if study.trials:
            write_whole(folder / "table.txt", (table(study, goal, space) + "\n").encode())
    print(f"\n{table(study, goal, space)}\n\ncompare the runs with: onediff runs runs/{name}")
    return 0


def check_ends(file: str, fixed: Sequence[str], ends: Sequence[Sequence[str]]) -> None:
    """Raise UserError unless every listed value and both bounds of every range give a valid run."""
    from onediff.config.compose import load_run

    usual = [values[0] for values in ends]
    for number, values in enumerate(ends):
        for value in values:
            load_run(file, [*fixed, *usual[:number], value, *usual[number + 1 :]])

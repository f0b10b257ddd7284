"""Queue one run for every combination of values.

  onediff launch sweep configs/onediff_7b.yaml model.delta.tokens=16,64 phases.two.lr=1e-5,2e-5 --nodes 8 --at-most 2
  onediff launch sweep configs/demo.yaml optimizer.lr=1e-3,3e-4 --profile local

A key with several comma-separated values is varied; a key with a single value is the same in every run. The runs are in
runs/<name>-sweep/ and under one MLflow run of that name. A final small job writes runs/<name>-sweep/table.txt; until then,
`onediff runs runs/<name>-sweep` compares the runs and `onediff launch status runs/<name>-sweep` follows them.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onediff.amounts import at_least
from onediff.errors import UserError

if TYPE_CHECKING:
    from launcher.profile import ClusterProfile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="+", metavar="a.b=c,d,e", help="values; those with commas are varied")
    parser.add_argument("--at-most", type=at_least(1), default=4, metavar="N", help="runs at once (default: 4)")
    parser.add_argument("--nodes", default="1", metavar="N|N-M", help="nodes per run (default: 1)")
    parser.add_argument("--profile", default="default", metavar="NAME|FILE", help="the cluster (default: 'default')")
    parser.add_argument("--phases", metavar="A,B", help="only these phases (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="print the runs; write and queue nothing")


def run(args: argparse.Namespace) -> int:
    from launcher import slurm
    from launcher.commands.submit import submit
    from launcher.plan import EVALUATE, asked_nodes, make_plan
    from launcher.profile import load_profile
    from launcher.ready import check_inputs
    from launcher.record import Record
    from launcher.submission import Submission
    from onediff.config.compose import load_run
    from onediff.config.run import chosen_phases

    fixed, varied = split_overrides(args.overrides)
    name = f"{load_run(args.config, fixed).name}-sweep"
    profile = load_profile(args.profile)
    points = combinations(varied)
    names = run_names(points)
    # Every combination is checked before the first is queued.
    configs = [
        load_run(args.config, [*fixed, *point, f"name={own}", f"tracking.sweep={name}"])
        for own, point in zip(names, points, strict=True)
    ]
    nodes = asked_nodes(args.nodes, profile)
    phases = chosen_phases([*configs[0].phases, EVALUATE], args.phases)
    for config in configs:
        make_plan(config, Path("runs").resolve() / name / config.name, profile, nodes, phases)
    if args.dry_run:
        said = [args.config, *fixed, *points[0]]
        check_inputs(configs[0], profile, phases, said, dry_run=True)
        print("\n".join(" ".join(point) for point in points))
        return 0
    # One chain per run allowed at once: each run in a chain waits for the end of the previous one.
    last: list[str | None] = [None] * args.at_most
    folder, queued = (Path("runs") / name).resolve(), []
    try:
        for number, (config, point) in enumerate(zip(configs, points, strict=True)):
            print(f"{' '.join(point)}:")
            queue, record = number % args.at_most, Record(folder / config.name)
            before = record.jobs()
            said = [args.config, *fixed, *point]
            submit(Submission(config, record.run, profile, args.nodes, args.phases, behind=last[queue], said=said))
            made = [entry["job"] for entry in record.jobs()[len(before) :] if entry["job"]]
            queued += made
            last[queue] = made[-1] if made else last[queue]
        if queued:
            print(f"{'table':<12} job {submit_table(folder, profile, [job for job in last if job])}")
    except UserError:
        if queued:
            slurm.command(["scancel", *queued])  # all or none
        raise
    if profile.scheduler == "local":
        print((folder / "table.txt").read_text(encoding="utf-8", errors="replace") if write_table(folder) == 0 else "")
    print(f"\n{len(points)} runs, at most {args.at_most} at a time; compare them with: onediff runs runs/{name}")
    return 0


def submit_table(folder: Path, profile: ClusterProfile, behind: list[str]) -> str:
    """Queue the job that writes the table once every run has ended, successfully or not. Returns its id."""
    from launcher import slurm
    from launcher.render import Script, directive, environment_lines, job_name, rendered, resource_directives, safe

    small = profile.model_copy(update={"tasks_per_node": 1, "exclusive": False, "cpus_per_task": 1, "time_limit": "10"})
    python = profile.python or sys.executable
    code = next(iter(sorted(folder.glob("*/launch/code"))))
    script = Script(
        title=f"OneDiff: the table of the sweep {safe(folder.name, 'sweep')!r}",
        directives=[
            directive("job-name", job_name(folder.name, "table")),
            *resource_directives(small, "1", 1, 0),
            directive("output", folder / "table.txt"),
        ],
        environment=environment_lines(profile, code),
        work="Writes the output of `onediff runs` once every run has ended.",
        command=[python, str(code), "onediff", "runs", str(folder)],
    )
    file = folder / "table.sbatch"
    file.write_text(rendered(script), encoding="utf-8")
    return slurm.submit(str(file), [f"--dependency=afterany:{':'.join(behind)}"])


def write_table(folder: Path) -> int:
    """Write the same table without Slurm."""
    with (folder / "table.txt").open("w", encoding="utf-8") as file:
        return subprocess.run([sys.executable, "-m", "onediff", "runs", str(folder)], stdout=file).returncode


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Split overrides into those with one value and, for each with several values, a list of `key=value`."""
    fixed, varied = [], []
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"{override}: expected key.subkey=value, or key.subkey=a,b,c for several values")
        values = split_values(override, text)
        if len(values) > 1:
            varied.append([f"{key}={value}" for value in values])
        else:
            fixed.append(override)
    if not varied:
        raise UserError("nothing to vary: give several values for at least one key, such as optimizer.lr=1e-3,1e-4")
    return fixed, varied


def split_values(override: str, text: str) -> list[str]:
    """Split an override's values at commas; a list in brackets is one value. Raises UserError if a value is repeated."""
    values = re.findall(r"(?:[^,\[{]|\[[^\]]*\]|\{[^}]*\})+", text)
    if len(set(values)) < len(values):
        raise UserError(f"{override}: a value is listed twice")
    return values


def combinations(varied: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Every combination of one value per key; the last key varies fastest."""
    return list(itertools.product(*varied))


def run_names(points: Sequence[Sequence[str]]) -> list[str]:
    """A different name for each combination: its `slug` or, if several have the same one, with a digest of its values."""
    counts = Counter(map(slug, points))
    return [name if counts[name] == 1 else f"{name[:91]}-{digest(point)}" for point in points for name in [slug(point)]]


def digest(point: Sequence[str]) -> str:
    """Eight hexadecimal digits that stand for a combination."""
    return hashlib.sha256("\n".join(point).encode()).hexdigest()[:8]


def slug(point: Sequence[str]) -> str:
    """A plain name for a combination: `delta.tokens=16` and `lr=1e-3` give `tokens-16.lr-1e-3`."""
    words = []
    for choice in point:
        key, _, value = choice.partition("=")
        words.append(f"{key.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9.]+', '-', value).strip('-')}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ".".join(words))[:100]

"""Make shards in the tasks of a Slurm array, then merge them into one data set with one manifest.

  onediff launch data configs/diffcap.yaml --tasks 64 --profile my-cluster
  onediff launch data composed.yaml --tasks 200 --at-most 50

The file is a collection, as for `onediff data build`, or has a `name` and `commands`: lines as typed after `onediff data`
(build, compose, convert, render). Finished shards are kept, so after a failure run the same command again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
from pathlib import Path

from onediff.amounts import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file: a collection, or a name and commands")
    parser.add_argument("--tasks", type=at_least(1), default=16, metavar="N", help="tasks in the array (default: 16)")
    parser.add_argument("--at-most", type=at_least(1), metavar="N", help="tasks running at once (default: no limit)")
    parser.add_argument("--profile", default="default", metavar="NAME|FILE", help="the cluster (default: 'default')")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="folder for scripts and logs (default: runs/data-<name>)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print scripts or local commands; write and start nothing"
    )


def run(args: argparse.Namespace) -> int:
    from launcher.data_job import MERGE, SHARDS, data_plan, data_script, for_data, here, load_data_job, own_name
    from launcher.freeze import check_writable, freeze_data
    from launcher.plan import check_cluster
    from launcher.profile import load_profile
    from launcher.queue import require_idle, sole, submit_chain
    from launcher.record import Record
    from launcher.render import rendered

    job = load_data_job(args.config)
    run_path = (args.run or Path("runs") / f"data-{own_name(job)}").resolve()
    record = Record(run_path)
    asked = load_profile(args.profile, run_path)
    profile = for_data(asked)
    again = ["onediff", "launch", "data", str(args.config), "--tasks", str(args.tasks), "--profile", args.profile]
    again += ["--run", str(args.run)] if args.run else []
    plan = data_plan(job, run_path, profile, args.tasks, again)
    scripts = {phase: rendered(data_script(plan, profile, phase, args.at_most)) for phase in (SHARDS, MERGE)}
    for line in job.passed_over:
        print(f"skipped: {line}")
    if args.dry_run:
        print("\n".join(map(shlex.join, here(job, run_path)) if asked.scheduler == "local" else scripts.values()))
        return 0
    if asked.scheduler == "local":
        check_writable(run_path)
        freeze_data(record, job.collection, plan, asked)
        codes = (subprocess.run(words).returncode for words in here(job, run_path))
        return next((code for code in codes if code), 0)
    check_cluster(profile, [1])
    check_writable(run_path)
    with sole(record, "submitting"):
        require_idle(record)
        freeze_data(record, job.collection, plan, profile)
        files = [record.folder / f"{phase}.sbatch" for phase in scripts]
        for file, text in zip(files, scripts.values(), strict=True):
            file.write_text(text, encoding="utf-8")
        (_, shards), (_, merge) = submit_chain(record, list(scripts), files)
    print(f"{SHARDS:<12} job {shards}, {args.tasks} tasks\n{MERGE:<12} job {merge}")
    print(f"\nonediff launch status {run_path} --watch\nonediff launch logs {run_path} -f")
    return 0

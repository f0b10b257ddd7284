"""Turn a configuration into a chain of jobs: every phase, then the evaluation.

onediff launch submit configs/onediff_7b.yaml --nodes 8 --profile my-cluster
onediff launch submit configs/onediff_7b.yaml --nodes 4-8 --profile infiniband optimizer.lr=3e-4 --dry-run
onediff launch submit configs/demo.yaml --profile local
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.record import Record

if TYPE_CHECKING:
    from launcher.profile import ClusterProfile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")
    parser.add_argument(
        "--nodes", default="1", metavar="N|N-M", help="nodes; with a range a restart takes what is free"
    )
    parser.add_argument("--profile", default="default", metavar="NAME|FILE", help="the cluster (default: 'default')")
    parser.add_argument("--phases", metavar="A,B", help="only these phases; 'evaluate' is one (default: all)")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the run (default: runs/<name>)")
    parser.add_argument("--comment", metavar="TEXT", help="comment that Slurm shows with the jobs")
    parser.add_argument("--no-memory-check", action="store_true", help="queue a phase that is planned not to fit")
    parser.add_argument("--no-weights-check", action="store_true", help="queue it though the nodes must fetch models")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the scripts and what is still missing; write and queue nothing"
    )


def run(args: argparse.Namespace) -> int:
    from launcher.profile import load_profile
    from onediff.config.compose import load_run

    config = load_run(args.config, args.overrides)
    run_path = (args.run or Path("runs") / config.name).resolve()
    return submit(
        config,
        run_path,
        load_profile(args.profile, run_path),
        args.nodes,
        args.phases,
        comment=args.comment,
        dry_run=args.dry_run,
        memory_check=not args.no_memory_check,
        weights_check=not args.no_weights_check,
        said=[args.config, *args.overrides],
    )


def submit(
    config: object,
    run_path: Path,
    profile: ClusterProfile,
    nodes: str,
    phases: str | None,
    *,
    comment: str | None = None,
    dry_run: bool = False,
    new_code: bool = True,
    behind: str | None = None,
    memory_check: bool = True,
    weights_check: bool = True,
    said: Sequence[str] = (),
) -> int:
    """Checks everything, freezes the run, queues the chain (after the job `behind`), and says what to type next.

    `said` is the configuration with its overrides as they were typed, for commands to type; the run's own by default.
    """
    from launcher.fit import check_memory
    from launcher.plan import check_cluster, chosen_phases, make_plan, node_range, phase_script
    from launcher.queue import require_idle, sole
    from launcher.ready import check_inputs, offline
    from launcher.render import rendered
    from launcher.submit import check_folder, freeze, remaining, submit_chain, write_scripts
    from onediff.config.run import RunConfig
    from onediff.runs.address import require_sources

    assert isinstance(config, RunConfig)
    record = Record(run_path)
    wanted = remaining(record, config, chosen_phases(config, phases))
    if not wanted:
        print(f"{run_path}: every phase asked for has finished")
        return 0
    on_slurm = profile.scheduler == "slurm"
    profile = offline(config, profile) if weights_check else profile
    plan = make_plan(config, run_path, profile, node_range(nodes) if on_slurm else (1, 1), wanted)
    # Relative paths of the configuration are those of the first submission.
    plan["directory"] = record.plan().get("directory", str(Path.cwd()))
    # What `init` names may be gone once a checkpoint is there; pretrained weights are read again until a phase has ended.
    goes_on = config.init is not None and any(run_path.glob("checkpoints/*/latest"))
    begins = not goes_on and not any(record.finished(phase) for phase in config.phases)
    said = said or [str(run_path)]
    check_inputs(config, profile, wanted, said, begins=begins, dry_run=dry_run, weights=weights_check)
    if not dry_run:
        require_sources(config, run_path)
    if memory_check:
        check_memory(config, profile, plan)
    if dry_run:
        for name in wanted:
            print(rendered(phase_script(plan, profile, name, comment)))
        return 0
    if not on_slurm:
        from launcher.local_chain import run_chain

        check_folder(record, config)
        with sole(record, "running"):
            freeze(record, config, plan, profile, new_code)
            return run_chain(record, wanted)
    check_cluster(profile, [part["nodes"][0] for part in plan["phases"].values()])
    for name in wanted:
        rendered(phase_script(plan, profile, name, comment))  # a name that cannot be quoted is found here
    check_folder(record, config)
    with sole(record, "submitting"):
        require_idle(record)
        freeze(record, config, plan, profile, new_code)
        made = submit_chain(record, wanted, write_scripts(record, plan, profile, wanted, comment), behind)
    for name, job_id in made:
        print(f"{name:<12} job {job_id}")
    print(f"\nonediff launch status {run_path} --watch\nonediff launch logs {run_path} -f")
    return 0

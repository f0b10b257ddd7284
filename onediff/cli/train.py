"""Train a model: the phases of a configuration in order, from shards to checkpoints.

  onediff train configs/demo.yaml --processes 2
  onediff train configs/demo.yaml --processes 2 --resume
  onediff train runs/low-rate --processes 2 --resume            with the run's own settings
  onediff train configs/demo.yaml optimizer.lr=3e-4 phases.two.steps=100 --run runs/low-rate
  onediff train configs/onediff_7b.yaml --processes 8 --node 1/4 --meet first-host:29500    on each of four machines

Under srun, torchrun or mpirun, every task is one rank; leave out --processes. A run stopped by Ctrl-C, SIGTERM or
Slurm's warning writes a checkpoint and exits with code 75; --resume continues from there. Give the same overrides again,
or the run's own folder instead of the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launcher.local import Node, run_local
from onediff.amounts import at_least
from onediff.cli.quiet import quiet_libraries
from onediff.config.compose import load_run
from onediff.config.evaluation import EvaluationConfig
from onediff.config.model import ModelConfig
from onediff.config.run import RunConfig, chosen_phases
from onediff.config.training import InitConfig
from onediff.errors import UserError
from onediff.ranks import own_place
from onediff.runs.address import require_sources
from onediff.tracking.overview import is_run

PRETRAINED = ("vision", "delta", "language")
"""Parts of the model that can start from pretrained weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, name of a shipped one (configs/demo.yaml), or the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the run (default: runs/<name>)")
    parser.add_argument("--phases", metavar="A,B", help="only these phases (default: all)")
    parser.add_argument("--resume", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--peer-copies", type=Path, metavar="DIR", help=argparse.SUPPRESS)  # set by `onediff launch`
    parser.add_argument(
        "--processes", type=at_least(1), metavar="N", help="start N ranks on this machine (default: one)"
    )
    parser.add_argument("--node", metavar="I/N", help="with --processes: this is machine I of N, counting from 0")
    parser.add_argument("--meet", metavar="HOST:PORT", help="with --node: where the ranks meet, on machine 0")


def run(args: argparse.Namespace) -> int:
    config = load_run(args.config, args.overrides)
    folder: Path = args.run or own_folder(args.config, args.resume) or Path("runs") / config.name
    phases = chosen_phases(config.phases, args.phases)
    place = own_place(args.processes)
    node = Node.of(args.node, args.meet)
    if node.count > 1 and not args.processes:
        raise UserError("--node: set the number of ranks per machine with --processes")
    check(config, folder, phases, args.resume, args.processes * node.count if args.processes else place.world)
    if place.alone:
        print(f"{folder}: phases {', '.join(phases)}; loading …", file=sys.stderr, flush=True)
        if args.processes and args.processes * node.count > 1:
            words = [args.config, *args.overrides, "--run", str(folder), "--phases", ",".join(phases)]
            words += ["--resume"] if args.resume else []
            command = [sys.executable, "-m", "onediff", "train", *words]
            name = "process" if node.count == 1 else f"process.node{node.index}"
            return run_local(command, args.processes, log_dir=folder / "logs", name=name, node=node)
    quiet_libraries()
    from onediff.training.run import train

    return train(config, folder, phases, args.resume, args.peer_copies)


def own_folder(config: str, resume: bool) -> Path | None:
    """The run to resume, if `config` is its folder or the configuration in it."""
    path = Path(config)
    folder = path.parent if path.name == "config.yaml" else path
    return folder if resume and (folder / "config.yaml").is_file() and is_run(folder) else None


def check(config: RunConfig, folder: Path, phases: list[str], resume: bool, processes: int) -> None:
    """Checks what can be checked before the processes meet. Raises UserError."""
    from onediff.data.manifest import read_manifest
    from onediff.tracking.place import check_environment

    if (folder / "config.yaml").exists() and not resume:
        raise UserError(
            f"{folder}: this run already exists; continue it with --resume, or name another folder with --run"
        )
    if resume and not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run to resume here; start it without --resume, or name its folder with --run")
    check_environment(config.tracking)
    require_sources(config.init, folder)
    for name in phases:
        phase = config.phases[name]
        rows = phase.micro_batch * processes // config.parallel.row_ranks
        if phase.global_batch % max(1, rows):
            raise UserError(
                f"phases.{name}.global_batch: {phase.global_batch} cannot be divided among {processes} processes in "
                f"micro-batches of {phase.micro_batch}; make it a multiple of {rows}"
            )
        for data_set in phase.mix:
            read_manifest(config.data.sets[data_set].folder)
    require_splits(config, phases)
    if not resume:
        require_weights(config.model, config.init)


def require_splits(config: RunConfig, phases: list[str]) -> None:
    """Raises UserError if a held-out split does not exist that a phase reads, or that was chosen for the evaluation."""
    from onediff.plan.missing import missing_evaluated, missing_lines, missing_splits

    # Data of one's own may lack the usual split; whoever only trains does not need it.
    is_chosen = config.evaluation.split != EvaluationConfig.model_fields["split"].default
    missing = missing_splits(config.data, {name: config.phases[name] for name in phases})
    if missing := [*missing, *missing_evaluated(config, phases, after=is_chosen)]:
        raise UserError("; ".join(missing_lines(missing)))


def require_weights(model: ModelConfig, init: InitConfig | None) -> None:
    """Raises UserError if a folder of pretrained weights does not exist."""
    from onediff.hub.named import named_in

    begun_elsewhere = init.addresses if init is not None else {}
    for one in named_in(model, [part for part in PRETRAINED if part not in begun_elsewhere]):
        if one.is_path and one.folder() is None:
            # `demo-tower` can make a tower that has both a name and an architecture.
            made = ", or make it with 'onediff demo-tower' and this configuration" if not one.config else ""
            raise UserError(f"{one.where}: {one.name}: no such folder; name the folder of the weights{made}")

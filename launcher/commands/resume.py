"""Queue the rest of a run again with its frozen configuration, on more or fewer nodes if asked.

onediff launch resume runs/demo
onediff launch resume runs/demo --nodes 4 --new-code
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from onediff.amounts import at_least

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.profile import ClusterProfile
    from launcher.record import Json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--nodes", metavar="N|N-M", help="nodes (default: as before)")
    parser.add_argument("--spares", type=at_least(0), metavar="N", help="additional standby nodes (default: as before)")
    parser.add_argument("--profile", metavar="NAME|FILE", help="another cluster (default: as before)")
    parser.add_argument("--phases", metavar="A,B", help="only these phases (default: those submitted before)")
    parser.add_argument(
        "--no-memory-check", action="store_true", help="queue phases even if they are not expected to fit"
    )
    parser.add_argument("--no-weights-check", action="store_true", help="let the nodes download missing models")
    parser.add_argument("--new-code", action="store_true", help="use the installed code instead of the frozen code")


def run(args: argparse.Namespace) -> int:
    from launcher.commands.submit import submit
    from launcher.local_chain import run_folder
    from launcher.profile import ClusterProfile, load_profile
    from launcher.record import Record, read_json
    from launcher.submission import Submission
    from onediff.config.compose import load_run
    from onediff.errors import UserError

    path = run_folder(args.run)
    record = Record(path)
    if again := record.plan().get("again"):
        raise UserError(f"{path}: is a data job; continue it with: {again}")
    parts = record.submitted_plan()["phases"]
    left = [part for name, part in parts.items() if not record.finished(name)]
    if args.profile:
        profile = load_profile(args.profile, path)
    else:
        profile = ClusterProfile.model_validate(read_json(record.folder / "profile.json"))
    nodes, spares = before(left or list(parts.values()), profile)
    if os.path.isdir(directory := record.plan().get("directory", "")):
        os.chdir(directory)  # relative paths in the configuration refer to the directory of the first submission
    phases = args.phases or ",".join(dict.fromkeys([*(entry["phase"] for entry in record.jobs()), *parts]))
    asked = Submission(
        load_run(str(path / "config.yaml")),
        path,
        profile,
        args.nodes or nodes,
        phases,
        spares=spares if args.spares is None else args.spares,
        new_code=args.new_code,
        memory_check=not args.no_memory_check,
        weights_check=not args.no_weights_check,
    )
    return submit(asked)


def before(parts: Sequence[Json], profile: ClusterProfile) -> tuple[str, int]:
    """The nodes and spares of a run's last submission; this machine is one node, wherever the run was before."""
    if profile.scheduler == "local":
        return "1", 0
    least, most = parts[0]["nodes"]
    return f"{least}-{most}", max(part.get("spares", 0) for part in parts)

"""Check a cluster before a run is trusted to it: from here, then by a short job from its nodes.

onediff launch doctor --profile my-cluster --nodes 2
onediff launch doctor --profile my-cluster --login-only
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="default", metavar="NAME|FILE", help="the cluster (default: 'default')")
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="nodes of the short job (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="shared folder (default: this one)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set that the nodes must be able to read")
    parser.add_argument("--login-only", action="store_true", help="start no job")
    parser.add_argument("--wait", type=float, default=300, metavar="SECONDS", help="longest wait for the job")


def run(args: argparse.Namespace) -> int:
    from launcher import slurm
    from launcher.plan import check_cluster
    from launcher.profile import load_profile
    from onediff.errors import UserError

    profile = load_profile(args.profile)
    if profile.scheduler == "local":
        raise UserError(f"profile {args.profile!r}: has no cluster to check")
    good = True

    def show(name: str, finding: str, fine: bool = True) -> None:
        nonlocal good
        good = good and fine
        print(f"{'ok  ' if fine else 'BAD '} {name:<22} {finding}")

    show("Slurm", slurm.command(["sbatch", "--version"]).strip())
    here = (
        slurm.partitions()[(profile.partition or "").split(",")[0]]
        if not faulty(check_cluster, profile, args)
        else None
    )
    show("partition", faulty(check_cluster, profile, args) or f"{here}", here is not None)
    if here is None or args.login_only:
        return 0 if good else 1
    folder = Path(tempfile.mkdtemp(prefix=".onediff-doctor-", dir=args.folder.resolve()))
    try:
        for name, finding, fine in node_findings(folder, profile, args):
            show(name, finding, fine)
    finally:
        shutil.rmtree(folder)
    return 0 if good else 1


def faulty(check: object, profile: object, args: argparse.Namespace) -> str | None:
    """What is wrong with the profile on this cluster, or None."""
    from onediff.errors import UserError

    assert callable(check)
    try:
        check(profile, [args.nodes])
    except UserError as error:
        return str(error)
    return None


def node_findings(folder: Path, profile: object, args: argparse.Namespace) -> Iterator[tuple[str, str, bool]]:
    """Rows about the nodes that a short job was given, and the ways between them."""
    import launcher
    from launcher import slurm
    from launcher.preflight import read_findings, verdict
    from launcher.profile import ClusterProfile
    from launcher.ranks import expand_nodes
    from launcher.render import resource_directives
    from onediff.errors import UserError

    assert isinstance(profile, ClusterProfile)
    limits = {**profile.preflight.model_dump(), "run": str(folder), "scratch": profile.scratch}
    limits |= {"gpus": profile.gpus_per_node, "data": str(args.data.resolve()) if args.data else None}
    short = profile.model_copy(update={"time_limit": "5", "sbatch": []})
    options = [line.replace('"', "") for line in resource_directives(short, str(args.nodes), 1, profile.gpus_per_node)]
    python = profile.python or sys.executable
    code = str(Path(launcher.__file__).parents[1])
    words = ["env", f"PYTHONPATH={code}", python, "-m", "launcher.preflight", str(folder), json.dumps(limits)]
    names = ["sh", "-c", 'echo "$SLURM_JOB_NODELIST"; exec "$@"', "sh"]
    try:
        said = slurm.command(["srun", *options, "--job-name=onediff-doctor", *profile.srun, *names, *words], args.wait)
    except UserError as error:
        yield "short job", str(error), False
        return
    nodes = expand_nodes(said.split()[0])
    notes = read_findings(folder)
    unfit = verdict(notes, nodes)
    yield "nodes", f"{len(nodes)}: {', '.join(nodes)}", True
    yield (
        "shared folder",
        f"{args.folder.resolve()} written by {len(notes)} of {len(nodes)} nodes",
        len(notes) == len(nodes),
    )
    for note in notes:
        wrong = unfit.get(note["node"])
        yield note["node"], wrong or f"fit; {note['summary']}", wrong is None
    for note in notes:
        if "latency_ms" in note:
            way = f"{note['latency_ms']:.2f} ms there and back, {note['mb_per_second']:.0f} MB/s over TCP"
            yield f"{note['node']} → {note['next']}", way, True
            yield "  clock", f"differs by {note['clock_ms']:.1f} ms", abs(note["clock_ms"]) < 1000
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        answers = [note.get("mlflow") for note in notes]
        yield "MLflow", f"{uri}: {', '.join(map(str, answers))}", all(answer == "reachable" for answer in answers)

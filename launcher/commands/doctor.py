"""Check a cluster before trusting it with a run: first from here, then from its nodes in a short job.

onediff launch doctor --profile my-cluster --nodes 2
onediff launch doctor --profile my-cluster --login-only
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onediff.amounts import amount, at_least

if TYPE_CHECKING:
    from launcher.profile import ClusterProfile
    from launcher.slurm import Partition

OLDEST = (22, 5)
"""The oldest Slurm version tested."""
OF_SBATCH_ALONE = re.compile(
    r"--(array|requeue|no-requeue|time|output|error|open-mode|wrap|parsable|test-only|wait|export-file|signal|dependency)\b"
    r"|-[aoetWd]"
)
"""sbatch options in a profile that srun lacks or that a job of a few minutes must not have."""
Finding = tuple[str, str, bool]
"""The subject of a check, the finding, and whether it is fine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="default", metavar="NAME|FILE", help="the cluster (default: 'default')")
    parser.add_argument("--nodes", type=at_least(1), default=2, metavar="N", help="nodes of the short job (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="shared folder (default: this one)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set that the nodes must be able to read")
    parser.add_argument("--login-only", action="store_true", help="do not start a job")
    parser.add_argument(
        "--wait", type=amount, default=300, metavar="SECONDS", help="longest wait for the job (default: 300)"
    )


def run(args: argparse.Namespace) -> int:
    from launcher import slurm
    from launcher.plan import check_cluster
    from launcher.profile import load_profile
    from onediff.errors import UserError

    profile = load_profile(args.profile)
    if profile.scheduler == "local":
        raise UserError(f"profile {args.profile!r}: not a cluster, nothing to check")
    good = True

    def show(name: str, finding: str, fine: bool = True) -> None:
        nonlocal good
        good = good and fine
        print(f"{'ok  ' if fine else 'BAD '} {name:<22} {finding}")

    for row in slurm_findings(profile):
        show(*row)
    try:
        check_cluster(profile, [args.nodes])
    except UserError as error:
        show("partition", str(error), False)
        return 1
    show("partition", described(slurm.partitions()[(profile.partition or "").split(",")[0]]))
    if args.login_only:
        return 0 if good else 1
    folder = Path(tempfile.mkdtemp(prefix=".onediff-doctor-", dir=args.folder.resolve()))
    try:
        for row in node_findings(folder, profile, args):
            show(*row)
        if good:
            for row in sum_findings(folder, profile, args):
                show(*row)
    finally:
        shutil.rmtree(folder)
    return 0 if good else 1


def slurm_findings(profile: ClusterProfile) -> Iterator[Finding]:
    """Slurm's version and configuration, as it reports them."""
    from launcher import slurm

    version = slurm.command(["sbatch", "--version"]).strip()
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    yield "Slurm", version, number >= OLDEST
    values = slurm.configuration()
    facts = {
        "preemption": values.get("PreemptMode", "?"),
        "kill wait": values.get("KillWait", "?"),
        "largest array": values.get("MaxArraySize", "?"),
        "accounting": values.get("AccountingStorageType", "?").rpartition("/")[2],
    }
    yield "  features", ", ".join(f"{name} {value}" for name, value in facts.items()), True
    tracking = values.get("ProctrackType", "")
    lost = "; processes that leave their group outlive their job" if tracking.endswith("pgid") else ""
    yield "  processes", f"{tracking}{lost}", not lost
    if profile.gpus_per_node:
        kinds = values.get("GresTypes", "")
        yield "  GPUs as resources", kinds or "none", "gpu" in kinds.split(",")


def described(limit: Partition) -> str:
    """A partition's limits as text."""
    from launcher.slurm import UNKNOWN

    time = "no time limit" if limit.minutes is None else f"{limit.minutes} minutes at most"
    has = f"{limit.gpus} GPUs and {limit.cpus} CPUs per node" if limit.cpus < UNKNOWN else "all currently powered off"
    return f"{limit.name}: {limit.nodes} nodes, {has}, {time}"


def node_findings(folder: Path, profile: ClusterProfile, args: argparse.Namespace) -> Iterator[Finding]:
    """Findings about the nodes assigned to a short job, and the connections between them."""
    from launcher import slurm
    from launcher.preflight import read_findings, verdict
    from onediff.errors import UserError
    from onediff.ranks import expand_nodes

    limits = {**profile.preflight.model_dump(), "run": str(folder), "scratch": profile.scratch}
    limits |= {"gpus": profile.gpus_per_node, "data": str(args.data.resolve()) if args.data else None}
    options = short_job(profile, args, 1)
    python = profile.python or sys.executable
    words = [*here_code(), python, "-m", "launcher.preflight", str(folder), json.dumps(limits)]
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
            way = f"{note['latency_ms']:.2f} ms round trip, {note['mb_per_second']:.0f} MB/s over TCP"
            yield f"{note['node']} → {note['next']}", way, True
            yield "  clock", f"differs by {note['clock_ms']:.1f} ms", abs(note["clock_ms"]) < 1000
    if any("latency_ms" in note for note in notes):
        yield "ports", f"{notes[0]['port']} open between all nodes", not unfit
    drivers = {note["node"]: note["driver"] for note in notes if note.get("driver")}
    if drivers:
        told = ", ".join(f"{node} {version}" for node, version in drivers.items())
        yield (
            "GPU driver",
            told if len(set(drivers.values())) > 1 else next(iter(drivers.values())),
            len(set(drivers.values())) == 1,
        )
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        answers = [note.get("mlflow") for note in notes]
        yield "MLflow", f"{uri}: {', '.join(map(str, answers))}", all(answer == "reachable" for answer in answers)


def sum_findings(folder: Path, profile: ClusterProfile, args: argparse.Namespace) -> Iterator[Finding]:
    """Run an all-reduce through torch on all ranks, as training does, and measure its speed."""
    from launcher import slurm
    from launcher.outcome import judge, read_notes
    from launcher.plan import container_prefix, pyxis_options
    from launcher.record import glimpse
    from launcher.render import variables
    from onediff.errors import UserError

    inside = profile.container.python if profile.container else profile.python or sys.executable
    results, notes = folder / "sums" / "all-reduce.json", folder / "sums"
    program = [inside, "-m", "onediff.parallel.all_reduce", str(results), *(["--gpus"] * (profile.gpus_per_node > 0))]
    task = [
        *container_prefix(profile, folder),
        inside,
        "-m",
        "launcher.task",
        str(notes),
        str(notes / "log"),
        "-",
        *program,
    ]
    environment = [*here_code(), *(f"{name}={value}" for name, value in variables(profile).items())]
    options = [*short_job(profile, args, profile.tasks), *profile.srun, *pyxis_options(profile, folder)]
    try:
        slurm.command(["srun", *options, "--job-name=onediff-doctor", *environment, *task], args.wait)
    except UserError as error:
        told = read_notes(notes)
        nodes = list(dict.fromkeys(note["node"] for note in told))
        reason = judge(told, nodes, len(told), False, {}).reason if told else str(error)
        yield "all-reduce", reason, False
        return
    found = glimpse(results)
    pace = f"{found['latency_us']:.0f} µs for one number, bus bandwidth {found['mb_per_second']:,.0f} MB/s"
    yield "all-reduce", f"{found['world']} ranks on {args.nodes} nodes ({found['device']}): {pace}", True


def short_job(profile: ClusterProfile, args: argparse.Namespace, tasks: int) -> list[str]:
    """srun's options for a job of a few minutes."""
    from launcher.render import resource_directives

    own = [line for line in profile.sbatch if not OF_SBATCH_ALONE.match(line)]
    short = profile.model_copy(update={"time_limit": "5", "sbatch": own})
    lines = resource_directives(short, str(args.nodes), tasks, profile.gpus_per_node)
    return [word for line in lines for word in shlex.split(line)]


def here_code() -> list[str]:
    """`env PYTHONPATH=…`: this installation's code on the nodes."""
    import launcher

    return ["env", f"PYTHONPATH={Path(launcher.__file__).parents[1]}"]

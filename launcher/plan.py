"""Make the frozen plan of a run from a configuration and a profile. All checks come before anything is queued."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import slurm
from launcher.frozen import module
from launcher.profile import ClusterProfile
from launcher.queue import mark
from launcher.record import Json, Record
from launcher.render import Script, check_folder, directive, environment_lines, job_name, resource_directives, variables
from launcher.rules import Rule, usable_nodes
from onediff.config.section import nearest
from onediff.errors import UserError

if TYPE_CHECKING:
    from onediff.config.run import RunConfig

EVALUATE = "evaluate"


def node_range(text: str) -> tuple[int, int]:
    """Parse `"8"` or `"4-8"` into the minimum and maximum number of nodes."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < least <= most:
        raise UserError(f"--nodes {text}: expected a count such as 8, or a range such as 4-8")
    return least, most


def asked_nodes(text: str, profile: ClusterProfile, spares: int = 0) -> tuple[int, int]:
    """The minimum and maximum number of nodes in `text`. Raises UserError for more than one node without a cluster."""
    least, most = node_range(text)
    if profile.scheduler == "local" and most + spares > 1:
        given = f"--spares {spares}" if spares else f"--nodes {text}"
        raise UserError(f"{given}: this profile runs on this machine, its only node; name a cluster with --profile")
    return least, most


def remaining(record: Record, phases: Collection[str], chosen: list[str], has_init: bool) -> list[str]:
    """The `chosen` phases that still have to run, of all `phases` of the configuration.

    Raises UserError if an earlier one is neither finished nor chosen; with `init` a run may begin with any phase.
    """
    order = list(phases)
    wanted = [name for name in chosen if not record.finished(name)]
    if EVALUATE in chosen and EVALUATE not in wanted and len(wanted) > 0:
        wanted.append(EVALUATE)  # the existing scores are those of an earlier state
    first = next((number for number, name in enumerate(order) if name in wanted or record.finished(name)), 0)
    for name in wanted:
        before = order if name == EVALUATE else order[: order.index(name)]
        before = before[first:] if has_init else before
        missing = [earlier for earlier in before if earlier not in wanted and not record.finished(earlier)]
        if missing:
            raise UserError(f"--phases: {name} needs phase {missing[0]}, which has not finished; add it to --phases")
    return wanted


def make_plan(
    config: RunConfig, run: Path, profile: ClusterProfile, nodes: tuple[int, int], phases: list[str], spares: int = 0
) -> Json:
    """The plan for the supervisor, as JSON. Raises UserError if the run could not start.

    A training phase requests `spares` more nodes than its ranks need.
    """
    check_folder(run)
    python = profile.python or sys.executable
    container = profile.container
    inside = container.python if container else python
    onediff = profile.command or [inside, *module(run, "onediff")]
    parts = {name: phase_part(config, run, profile, name, nodes, spares, onediff) for name in phases}
    rule = profile.requeue
    return {
        "name": config.name,
        "run": str(run),
        "partition": profile.partition,
        "supervisor_python": python,
        "rank_prefix": [*container_prefix(profile, run), inside],
        "rank_srun": pyxis_options(profile, run),
        "environment": variables(profile),
        "srun": list(profile.srun),
        "cpu_bind": profile.cpu_bind,
        "interface": profile.interface,
        "rule": rule.model_dump(include={field.name for field in fields(Rule)}),
        "failures": [[row.kind, row.match, row.action, row.advice] for row in profile.failures],
        "alerts": profile.alerts.model_dump(),
        "fence_seconds": rule.fence_seconds,
        "minutes": {
            "start": rule.start_minutes,
            "loading": rule.start_minutes,
            "step": rule.hang_minutes,
            **rule.section_minutes.model_dump(),
        },
        "preflight": {**profile.preflight.model_dump(), "run": str(run), "scratch": profile.scratch},
        "phases": parts,
    }


def phase_part(
    config: RunConfig,
    run: Path,
    profile: ClusterProfile,
    name: str,
    nodes: tuple[int, int],
    spares: int,
    onediff: Sequence[str],
) -> Json:
    """The part of the plan for one phase. `onediff` is the command that starts the program on a node."""
    part: Json = {"tasks_per_node": profile.tasks, "gpus": profile.gpus_per_node}
    if name == EVALUATE:
        words = ["evaluate", str(run), "--report", str(run / "evaluation" / "scores.json")]
        # Every model replica takes its own pairs, so any number of replicas works.
        tensor = config.evaluation.tensor
        part |= {"nodes": [1, 1], "spares": 0, "tensor": tensor, "batch": [max(1, profile.tasks // tensor), 1]}
    else:
        phase = config.phases[name]
        words = ["train", str(run / "config.yaml"), "--run", str(run), "--phases", name, "--resume"]
        # Ranks that compute the same rows count as one, whether they split layers or tokens.
        part |= {"nodes": list(nodes), "spares": spares, "tensor": config.of_phase(name).parallel.row_ranks}
        part |= {"batch": [phase.global_batch, phase.micro_batch]}
        part |= {"peer_copies": True} if config.training.peer_copies else {}
    check_batch(name, part)
    return part | {"cpus_per_task": profile.cpus_per_task, "command": [*onediff, *words]}


def check_batch(name: str, part: Json) -> None:
    """Raise UserError unless the smallest and the largest node count of the range can both split the batch."""
    least, most = part["nodes"]
    ranks, (batch, micro) = part["tasks_per_node"], part["batch"]
    if usable_nodes(most, ranks, part["tensor"], batch, micro) < least:
        world = most * ranks
        raise UserError(
            f"phases.{name}: {world} ranks ({most} nodes of {ranks}) with parallel.tensor × parallel.context = "
            f"{part['tensor']} cannot split a global batch of {batch} into micro-batches of {micro}; change "
            "--nodes or the batch"
        )


def container_prefix(profile: ClusterProfile, run: Path) -> list[str]:
    """The `apptainer exec …` that precedes a rank's command."""
    container = profile.container
    if not container or container.runtime != "apptainer":
        return []
    binds = [word for mount in [str(run), *container.mounts] for word in ("--bind", mount)]
    return ["apptainer", "exec", *(["--nv"] if profile.gpus_per_node else []), *binds, container.image]


def pyxis_options(profile: ClusterProfile, run: Path) -> list[str]:
    """srun's options for the pyxis plug-in."""
    container = profile.container
    if not container or container.runtime != "pyxis":
        return []
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in [str(run), *container.mounts]]
    options = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
    # Otherwise the image's values of these variables would override the profile's.
    names = sorted(variables(profile))
    return options + ([f"--container-env={','.join(names)}"] if names else [])


IGNORE_WARNING = "trap '' USR1  # until the supervisor listens"


def phase_script(plan: Json, profile: ClusterProfile, phase: str, comment: str | None = None) -> Script:
    """The batch script of one phase."""
    part, run = plan["phases"][phase], Path(plan["run"])
    least, most = (count + part["spares"] for count in part["nodes"])
    nodes = str(most) if least == most else f"{least}-{most}"
    directives = [directive("job-name", job_name(plan["name"], phase))]
    directives += [directive("comment", " ".join(filter(None, [comment, mark(run, phase)])))]
    directives += resource_directives(profile, nodes, part["tasks_per_node"], part["gpus"])
    directives += [directive("chdir", plan["directory"])] if "directory" in plan else []
    directives += [
        directive("signal", f"B:USR1@{profile.warn_seconds}"),  # to the supervisor, which passes it on
        "--requeue",
        "--no-kill",  # the supervisor handles a lost node and may continue without it
        "--open-mode=append",
        directive("output", run / "logs" / f"{phase}-%j.log"),
    ]
    return Script(
        title=f"OneDiff: {'the evaluation' if phase == EVALUATE else f'phase {phase}'} of the run {plan['name']!r}",
        directives=directives,
        environment=[IGNORE_WARNING, *environment_lines(profile, run / "launch" / "code")],
        work="The supervisor starts the ranks with srun, follows their steps, and decides what each end means.",
        command=[plan["supervisor_python"], *module(run, "launcher.job"), plan["run"], phase],
    )


def check_cluster(profile: ClusterProfile, nodes: Sequence[int]) -> None:
    """Check the limits of the partition. Raises UserError for a request that could never start."""
    known = slurm.partitions()
    names = (profile.partition or "").split(",")
    for name in names:
        if name not in known:
            listed = [partition for partition in known if partition]
            raise UserError(
                f"partition {name!r}: this cluster has no such partition{nearest(name, listed)}"
                if name
                else f"the cluster has no default partition; name one of {', '.join(listed)} in the profile"
            )
    limits = [known[name] for name in names]
    for limit in limits[:1]:
        if profile.gpus_per_node > limit.gpus:
            raise UserError(
                f"gpus_per_node {profile.gpus_per_node}: nodes of partition {limit.name} have {limit.gpus} GPUs"
            )
        cpus = profile.tasks * profile.cpus_per_task
        if cpus > limit.cpus:
            raise UserError(
                f"cpus_per_task {profile.cpus_per_task}: {profile.tasks} ranks per node need {cpus} CPUs, but "
                f"nodes of partition {limit.name} have {limit.cpus}"
            )
        if max(nodes) > limit.nodes:
            raise UserError(f"--nodes {max(nodes)}: partition {limit.name} has {limit.nodes} nodes")
        asked = slurm.minutes(profile.time_limit)
        if limit.minutes is not None and asked is not None and asked > limit.minutes:
            raise UserError(
                f"time_limit {profile.time_limit}: partition {limit.name} allows {limit.minutes} minutes at most"
            )

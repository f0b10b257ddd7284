"""The job as Slurm has it, and queueing it again, beside the nodes that are unfit.

Standard library only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from launcher.record import Json
from launcher.rules import usable_nodes
from launcher.slurm import NoAnswer, command
from onediff.errors import UserError
from onediff.ranks import expand_nodes

T = TypeVar("T")
RETRY_SECONDS, PATIENCE_SECONDS = 10.0, 600.0
"""Pause between two tries of what Slurm did not answer, and how long it is tried."""


def shown(job: str) -> dict[str, str]:
    """The job's fields. Raises UserError when the controller does not answer."""
    words = command(["scontrol", "--oneliner", "show", "job", job]).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def requeued(fields: dict[str, str]) -> bool:
    """Whether Slurm has queued the job again since this start of it, after a preemption or on somebody's request."""
    return int(fields.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))


def lost_nodes(nodes: Sequence[str]) -> list[str]:
    """Those of `nodes` that Slurm counts as lost now."""
    try:
        lines = command(["sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N %T"]).splitlines()
    except UserError:
        return []
    return sorted({line.split()[0] for line in lines if line.split()[1].startswith(("down", "fail"))})


def partition_nodes(partition: str) -> list[str]:
    """The names of the nodes of a partition, or of several with commas between."""
    return sorted(set(command(["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N"]).split()))


def all_excluded(fields: dict[str, str], unfit: Sequence[str]) -> list[str]:
    """The `unfit` nodes and those that the job keeps away from already, by its user's wish or since an earlier end."""
    before = fields.get("ExcNodeList", "(null)")
    return sorted({*unfit, *([] if before == "(null)" else expand_nodes(before))})


def fewer_nodes(known: Sequence[str], excluded: Sequence[str], part: Json) -> int | None:
    """How many nodes to go on with if fewer are left than the job asks for, spares included; None if enough are.

    0: none can share.
    """
    left = len(set(known) - set(excluded))
    if left >= part["nodes"][0] + part.get("spares", 0):
        return None
    if left >= part["nodes"][0]:
        return left  # with fewer spares
    return usable_nodes(left, part["tasks_per_node"], part["tensor"], *part["batch"])


def patiently(ask: Callable[[], T], say: Callable[[str], None]) -> T:
    """What `ask` returns, asked again as long as Slurm does not answer, for ten minutes at most."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except NoAnswer as error:
            if time.monotonic() > deadline:
                raise
            say(f"{error}; trying again")
            time.sleep(RETRY_SECONDS)


def queue_again(job: str, excluded: Sequence[str], nodes: int | None, tasks: int) -> None:
    """Queues the job again, away from the `excluded` nodes; on `nodes`, if given, with `tasks` ranks each."""
    if not requeued(shown(job)):
        command(["scontrol", "requeue", job])
    # Only a waiting job's nodes can be chosen: between the requeue and our end by Slurm it is one.
    changes = [f"ExcNodeList={','.join(excluded)}"] if excluded else []
    changes += [f"NumNodes={nodes}", f"NumTasks={nodes * tasks}"] if nodes else []
    if changes:
        command(["scontrol", "update", f"JobId={job}", *changes])

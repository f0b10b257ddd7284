"""Look up the job in Slurm and requeue it without its unfit nodes.

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
"""Seconds between retries when Slurm does not answer, and the longest time to keep retrying."""


def shown(job: str) -> dict[str, str]:
    """The job's fields as `scontrol` shows them. Raises UserError if the controller does not answer."""
    words = command(["scontrol", "--oneliner", "show", "job", job]).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def requeued(fields: dict[str, str]) -> bool:
    """Whether Slurm has requeued the job since this start, after a preemption or on request."""
    return int(fields.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))


def lost_nodes(nodes: Sequence[str]) -> list[str]:
    """The subset of `nodes` that Slurm considers lost."""
    try:
        lines = command(["sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N %T"]).splitlines()
    except UserError:
        return []
    return sorted({line.split()[0] for line in lines if line.split()[1].startswith(("down", "fail"))})


def partition_nodes(partition: str) -> list[str]:
    """Names of the nodes of one or more comma-separated partitions."""
    return sorted(set(command(["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N"]).split()))


def all_excluded(fields: dict[str, str], unfit: Sequence[str]) -> list[str]:
    """The `unfit` nodes plus those that the job already excludes, at the user's request or after an earlier attempt."""
    before = fields.get("ExcNodeList", "(null)")
    return sorted({*unfit, *([] if before == "(null)" else expand_nodes(before))})


def fewer_nodes(known: Sequence[str], excluded: Sequence[str], part: Json) -> int | None:
    """The number of nodes to continue with if fewer are left than the job requests, spares included; None if enough are.

    0 means that no number of the remaining nodes divides the batch.
    """
    left = len(set(known) - set(excluded))
    if left >= part["nodes"][0] + part.get("spares", 0):
        return None
    if left >= part["nodes"][0]:
        return left  # enough for the ranks, with fewer spares
    return usable_nodes(left, part["tasks_per_node"], part["tensor"], *part["batch"])


def patiently(ask: Callable[[], T], say: Callable[[str], None]) -> T:
    """Call `ask` until Slurm answers, for at most ten minutes, and return its result."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except NoAnswer as error:
            if time.monotonic() > deadline:
                raise
            say(f"{error}; retrying")
            time.sleep(RETRY_SECONDS)


def queue_again(job: str, excluded: Sequence[str], nodes: int | None, tasks: int) -> None:
    """Requeue the job, excluding `excluded`; if `nodes` is given, on that many nodes with `tasks` ranks each."""
    if not requeued(shown(job)):
        command(["scontrol", "requeue", job])
    # Slurm changes the nodes of pending jobs only; this job is pending from the requeue until Slurm kills this process.
    changes = [f"ExcNodeList={','.join(excluded)}"] if excluded else []
    changes += [f"NumNodes={nodes}", f"NumTasks={nodes * tasks}"] if nodes else []
    if changes:
        command(["scontrol", "update", f"JobId={job}", *changes])

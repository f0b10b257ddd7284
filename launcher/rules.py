"""Decide what follows the end of an attempt: done, retry, or stop and say why. Pure functions of the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.record import Attempt, Json
from onediff.errors import EXIT_BAD_INPUT, EXIT_NOT_A_NUMBER, EXIT_STOPPED

FINISHED, STOPPED, BAD_INPUT, NOT_A_NUMBER = 0, EXIT_STOPPED, EXIT_BAD_INPUT, EXIT_NOT_A_NUMBER
"""Exit codes of a training process."""

INTERRUPTIONS = 20
"""Number of external signals in a row, without progress in between, after which a person should look."""
ASIDE = ("bad node", "slow node", "interrupted", "cancelled")
"""Causes that do not tell whether the run can continue."""

CAUSES = {FINISHED: "finished", STOPPED: "stopped", BAD_INPUT: "bad input", NOT_A_NUMBER: "not a number"}


@dataclass(frozen=True)
class Rule:
    """How often a phase is retried; `RequeueRule` in the profile documents the fields."""

    restarts_without_progress: int
    node_failures: int
    slow_share: float | None = None
    slow_times: int = 1


@dataclass(frozen=True)
class Decision:
    """What to do after an attempt, and a one-line reason."""

    action: str
    why: str
    exclude: list[str] = field(default_factory=list)


def decide(attempts: Sequence[Attempt], rule: Rule) -> Decision:
    """The decision after the last of `attempts`, which has ended.

    Progress means reaching a step that no earlier attempt reached, so a phase that always dies at the same step is stopped.
    """
    last = attempts[-1]
    why = last.reason or str(last.cause)
    if last.cause == "finished":
        return Decision("done", why)
    if last.cause == "cancelled":
        return Decision("fail", why)
    if last.cause == "refused":
        return Decision("fail", f"{why}; look at `srun` and `sbatch` in the profile")
    ever = max((attempt.last_step or 0) for attempt in attempts)
    if last.cause in ("not a number", "hopeless"):
        return Decision("fail", f"{why}; a restart would only repeat it")
    if last.cause in ("bad input", "hopeless at start") and ever == 0:
        return Decision("fail", why)
    exclude = bad_nodes(attempts, rule)
    if last.cause == "bad node":
        if all(a.cause == "bad node" and set(a.nodes) <= set(a.blamed) for a in attempts[-2:]) and len(attempts) > 1:
            # So the nodes are not to blame.
            return Decision("fail", f"every node failed its pre-flight check twice: {why}")
        return Decision("requeue", why, exclude)
    if len(attempts) >= INTERRUPTIONS and all(map(stopped_idle, attempts[-INTERRUPTIONS:])):
        return Decision("fail", f"{why}, {INTERRUPTIONS} times in a row")
    if last.cause in ("interrupted", "slow node"):
        return Decision("requeue", why, exclude)
    idle = without_progress(attempts)
    if idle > rule.restarts_without_progress:
        return Decision("fail", f"{why}; {idle} attempts in a row without progress (step {ever})", exclude)
    return Decision("requeue", why, exclude)


def nodes_here(decision: Decision, attempts: Sequence[Attempt], ours: Sequence[str], part: Json) -> list[str]:
    """Nodes of the running job to restart on immediately; empty if the job has to be requeued.

    The order is: nodes of the last attempt, spares, slow nodes. `ours` are the nodes that the job still has. The result
    is empty if they are fewer than the user asked for.
    """
    last, slow = attempts[-1], slow_nodes(attempts)
    if decision.action != "requeue" or last.cause in ("stopped", "vanished", "cancelled"):
        return []
    left = [node for node in ours if node not in decision.exclude]
    left.sort(key=lambda node: (node in slow, node not in last.nodes))
    least, most = part["nodes"]
    count = usable_nodes(min(len(left), most), part["tasks_per_node"], part["tensor"], *part["batch"])
    return left if count >= least else []


def without_progress(attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts made no progress, not counting those whose cause is outside the run."""
    idle = 0
    for attempt in reversed([a for a in attempts if a.cause not in ASIDE and not stopped_idle(a)]):
        if (attempt.last_step or 0) > attempt.first_step:
            break
        idle += 1
    return idle


def stopped_idle(attempt: Attempt) -> bool:
    """Whether an external signal ended the attempt before it made progress."""
    return attempt.cause in ("interrupted", "stopped") and attempt.last_step == attempt.first_step


def slow_nodes(attempts: Sequence[Attempt]) -> set[str]:
    """Nodes replaced by a spare because they were slow."""
    return {node for attempt in attempts if attempt.cause == "slow node" for node in attempt.blamed}


def bad_nodes(attempts: Sequence[Attempt], rule: Rule) -> list[str]:
    """Nodes to avoid: broken ones, those that ever failed a pre-flight check, and those that ended too many attempts."""
    failures = Counter(node for attempt in attempts if attempt.cause != "slow node" for node in attempt.blamed)
    at_once = ("bad node", "bad hardware")
    unfit = {node for attempt in attempts if attempt.cause in at_once for node in attempt.blamed}
    return sorted(unfit | {node for node, count in failures.items() if count >= rule.node_failures})


def usable_nodes(available: int, tasks_per_node: int, tensor: int, global_batch: int, micro_batch: int) -> int:
    """The largest number of nodes, up to `available`, whose ranks can split the global batch evenly; 0 if there is none."""
    for nodes in range(available, 0, -1):
        data, rest = divmod(nodes * tasks_per_node, tensor)
        if not rest and data and global_batch % (data * micro_batch) == 0:
            return nodes
    return 0

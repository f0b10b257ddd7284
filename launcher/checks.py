"""Check that a job's nodes are fit for ranks: each node, the network between them, and a torch all-reduce.

Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from launcher import frozen
from launcher.allocation import IGNORANT, Allocation
from launcher.outcome import Outcome, read_notes, sum_verdict
from launcher.preflight import read_findings, verdict
from launcher.record import Json, Record, names_in


def preflight(allocation: Allocation, record: Record, part: Json, attempt: str, nodes: Sequence[str]) -> Outcome | None:
    """Check `nodes` before the ranks of `attempt` start. Returns an outcome if some are unfit or none could be checked."""
    limits = {**allocation.plan["preflight"], "gpus": part["gpus"]}
    if not limits["enabled"] or not nodes:
        return None
    notes = record.folder / "exits" / f"{attempt}.preflight"
    module = frozen.module(record.run, "launcher.preflight")
    words = [allocation.plan["supervisor_python"], *module, str(notes), json.dumps(limits)]
    options = [
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes)}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(nodes)}",
        "--overlap",  # with the keepers, and with steps that Slurm still counts on a lost node
    ]
    refused = allocation.run(
        [*options, *allocation.plan["srun"], *IGNORANT, *words],
        lambda: allocation.wait(limits["seconds"]),
        lambda: bool(read_findings(notes)),
        "preflight",
    )
    if refused:
        return refused
    findings = read_findings(notes)
    if not findings and len(nodes) > 1:
        assert allocation.srun is not None
        return Outcome("crash", f"no node answered the pre-flight check: {allocation.srun.last_words()}")
    unfit = verdict(findings, list(nodes))
    if not unfit and limits["all_reduce"]:
        refused, unfit = sums(allocation, record, part, attempt, nodes)
        if refused:
            return refused
    if not unfit:
        return None
    reason = "; ".join(f"{node}: {why}" for node, why in sorted(unfit.items()))
    return Outcome("bad node", f"pre-flight: {reason}", blamed=tuple(sorted(unfit)))


def sums(
    allocation: Allocation, record: Record, part: Json, attempt: str, nodes: Sequence[str]
) -> tuple[Outcome | None, dict[str, str]]:
    """Run an all-reduce on every rank. Returns why the ranks never began, and the nodes that failed with their faults."""
    plan, notes = allocation.plan, record.folder / "exits" / f"{attempt}.all-reduce"
    tasks, stem = len(nodes) * part["tasks_per_node"], record.logs / f"{attempt}.all-reduce"
    python = plan["rank_prefix"]
    module = frozen.module(record.run, "onediff.parallel.all_reduce")
    program = [python[-1], *module, str(notes / "all-reduce.json"), "--per-node", *(["--gpus"] if part["gpus"] else [])]
    options = [f"--nodes={len(nodes)}", f"--ntasks={tasks}", f"--ntasks-per-node={part['tasks_per_node']}"]
    options += [f"--nodelist={','.join(nodes)}", "--distribution=block:block", "--overlap"]
    task = [*python, *frozen.module(record.run, "launcher.task"), str(notes), str(stem), "-"]
    refused = allocation.run(
        [*options, *plan["srun"], *plan["rank_srun"], *IGNORANT, *task, *program],
        lambda: allocation.wait(3 * plan["preflight"]["seconds"]),
        lambda: has_logs(stem),
        "all-reduce",
    )
    return refused, {} if refused else sum_verdict(read_notes(notes), nodes, tasks)


def has_logs(stem: Path) -> bool:
    """Whether any rank began; each opens its log first."""
    return any(name.startswith(f"{stem.name}.rank") for name in names_in(stem.parent))

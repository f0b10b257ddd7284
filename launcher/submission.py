"""Submit a run: check it, freeze it into its folder, then queue it or run it here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from launcher.fit import check_memory
from launcher.freeze import check_same, check_writable, freeze, write_scripts
from launcher.plan import EVALUATE, asked_nodes, check_cluster, make_plan, phase_script, remaining
from launcher.profile import ClusterProfile
from launcher.queue import require_idle, sole, submit_chain
from launcher.ready import check_inputs, offline
from launcher.record import Json, Record
from launcher.render import rendered
from onediff.config.run import RunConfig, chosen_phases
from onediff.runs.address import require_sources
from onediff.tracking.place import check_environment


@dataclass(frozen=True)
class Submission:
    """A user's request to run a configuration."""

    config: RunConfig
    run: Path
    """The run's folder, as an absolute path."""
    profile: ClusterProfile
    nodes: str = "1"
    """Number of nodes, or a range such as `4-8`."""
    phases: str | None = None
    """Comma-separated names; all by default."""
    spares: int = 0
    """Additional nodes that stand by to replace one that fails."""
    comment: str | None = None
    new_code: bool = True
    """Freeze the installed code even if the run already has frozen code."""
    behind: str | None = None
    """Id of a job to wait for."""
    memory_check: bool = True
    weights_check: bool = True
    said: Sequence[str] = ()
    """The configuration and its overrides as typed, used in suggested commands; the run's own by default."""


class Ready(NamedTuple):
    """A submission that has passed every check."""

    asked: Submission
    record: Record
    profile: ClusterProfile
    plan: Json
    phases: list[str]
    """Phases that still have to run; empty if all have finished."""

    def commands(self) -> list[str]:
        """For each phase, the command that its ranks run on this machine, below a line with their number."""
        parts = [(name, self.plan["phases"][name]) for name in self.phases]
        return [f"# {name} (ranks: {part['tasks_per_node']})\n{shlex.join(part['command'])}" for name, part in parts]

    def scripts(self) -> list[str]:
        """The batch script of each phase. Raises UserError if a name cannot be quoted."""
        return [rendered(phase_script(self.plan, self.profile, name, self.asked.comment)) for name in self.phases]


def checked(asked: Submission, dry_run: bool = False) -> Ready:
    """Check all that can be checked without Slurm. Raises UserError; a dry run only lists missing inputs."""
    config, record = asked.config, Record(asked.run)
    nodes = asked_nodes(asked.nodes, asked.profile, asked.spares)
    check_same(record, config)
    wanted = remaining(
        record, config.phases, chosen_phases([*config.phases, EVALUATE], asked.phases), config.init is not None
    )
    if not wanted:
        return Ready(asked, record, asked.profile, {}, [])
    check_environment(config.tracking, {**os.environ, **asked.profile.environment})
    profile = offline(config.model, asked.profile) if asked.weights_check else asked.profile
    plan = make_plan(config, asked.run, profile, nodes, wanted, asked.spares)
    # Relative paths in the configuration are relative to the directory of the first submission.
    plan["directory"] = record.plan().get("directory", str(Path.cwd()))
    # The source of `init` may be gone once there is a checkpoint; pretrained weights are needed until a phase has finished.
    goes_on = config.init is not None and any(asked.run.glob("checkpoints/*/latest"))
    begins = not goes_on and not any(record.finished(phase) for phase in config.phases)
    said = asked.said or [str(asked.run)]
    check_inputs(config, profile, wanted, said, begins=begins, dry_run=dry_run, weights=asked.weights_check)
    if not dry_run:
        require_sources(config.init, asked.run)
    if asked.memory_check:
        check_memory(config, profile, plan)
    return Ready(asked, record, profile, plan, wanted)


def run_here(ready: Ready) -> int:
    """Run the phases on this machine. Returns the exit code of the chain."""
    from launcher.local_chain import run_chain

    check_writable(ready.asked.run)
    with sole(ready.record, "running"):
        freeze(ready.record, ready.asked.config, ready.plan, ready.profile, ready.asked.new_code)
        return run_chain(ready.record, ready.phases)


def queue(ready: Ready) -> list[tuple[str, str]]:
    """Have Slurm check every script, then queue all or none. Returns (phase, job id) pairs."""
    asked, record = ready.asked, ready.record
    check_cluster(ready.profile, [part["nodes"][0] + part["spares"] for part in ready.plan["phases"].values()])
    ready.scripts()
    check_writable(asked.run)
    with sole(record, "submitting"):
        require_idle(record)
        freeze(record, asked.config, ready.plan, ready.profile, asked.new_code)
        scripts = write_scripts(record, ready.plan, ready.profile, ready.phases, asked.comment)
        return submit_chain(record, ready.phases, scripts, asked.behind)

"""Start the ranks of a phase, follow them to their end, and judge it.

Standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from launcher import frozen, slurm
from launcher.again import lost_nodes
from launcher.alerts import Alerts
from launcher.allocation import IGNORANT, Allocation
from launcher.beats import Beats, answers
from launcher.checks import has_logs
from launcher.outcome import Outcome, judge, read_notes, silent_nodes
from launcher.record import Attempt, Json, Record
from launcher.rules import FINISHED, STOPPED
from launcher.say import say
from launcher.sections import Progress, Spikes
from launcher.slow import SlowNode
from launcher.stacks import missing
from launcher.step import END_SECONDS, signal_steps
from onediff.errors import UserError

LOOK_SECONDS = 2.0
"""Seconds between checks of the run's progress and of the ranks' notes."""
AFTERMATH_SECONDS = 15.0
"""Seconds that srun may continue once a rank has failed: it would wait forever for ranks on a dead node."""


class Watch:
    """Starts the ranks of `attempt` and returns how they ended."""

    def __init__(
        self,
        allocation: Allocation,
        record: Record,
        phase: str,
        part: Json,
        attempt: Attempt,
        beats: Beats,
        alerts: Alerts,
        slow: SlowNode,
    ) -> None:
        self.allocation, self.plan, self.record, self.beats = allocation, allocation.plan, record, beats
        self.phase, self.part, self.attempt = phase, part, attempt
        self.name = f"{phase}.{attempt.number}"
        self.again = any(before.job == attempt.job for before in record.attempts(phase)[:-1])
        """Whether this job has run ranks before."""
        self.notes, self.stem = record.exits(phase, attempt.number), record.logs / self.name
        self.progress = Progress(record, phase, attempt, self.plan["minutes"])
        self.slurmd = node_port()
        self.alerts, self.spikes = alerts, Spikes(record.run, phase)
        self.slow = slow
        self.replaced: tuple[str, str] | None = None
        """The slow node for which the ranks were asked to stop, and the reason."""

    def run(self) -> Outcome:
        """Start the ranks and follow them to their end."""
        attempt, found = self.attempt, list[Outcome]()

        def follow() -> bool:
            found[:] = filter(None, [self.follow()])
            return self.allocation.wait(0)

        refused = self.allocation.run(self.words(), follow, lambda: has_logs(self.stem), self.phase)
        self.progress.look()
        if refused and not found:
            return refused
        assert self.allocation.srun is not None
        notes = read_notes(self.notes)
        failed = [note["ended"] for note in notes if note["code"] not in (FINISHED, STOPPED)]
        attempt.failed = min([attempt.failed, *failed] if attempt.failed else failed, default=None)
        finished, status = self.record.finished(self.phase), self.record.status()
        ended, srun = self.allocation.ending.is_set(), self.allocation.srun
        rows = self.plan.get("failures", ())
        outcome = judge(
            notes,
            attempt.nodes,
            attempt.tasks,
            finished,
            status,
            lost_nodes,
            ended,
            srun.heard(),
            rows,
            list(srun.said),
        )
        if found and found[0].cause == "hang":
            silent = silent_nodes(notes, attempt.nodes, attempt.tasks)
            silent = silent if len(silent) < len(attempt.nodes) else []
            lost = f"; {', '.join(silent)} fell silent: node failure" if silent else ""
            if odd := missing([Path(f"{self.stem}.rank{rank}.log") for rank in range(attempt.tasks)]):
                lost = f"; {odd}{lost}"
            return found[0]._replace(
                reason=found[0].reason + lost,
                exit_code=outcome.exit_code,
                log=f"{self.stem}.rank0.log",
                blamed=tuple(silent),
            )
        if found:
            return found[0]
        if outcome.cause == "stopped" and self.replaced and not (self.allocation.warned or ended):
            node, why = self.replaced
            return outcome._replace(cause="slow node", reason=f"{why}; stopped at a checkpoint", blamed=(node,))
        if outcome.cause == "stopped" and "SIGUSR1" in outcome.reason:
            return outcome  # the ranks obeyed a warning; what follows may be a preemption
        return self.allocation.ended_by_slurm(outcome) if ended and outcome.cause != "finished" else outcome

    def words(self) -> list[str]:
        """srun's options and the command it starts."""
        attempt, part, plan = self.attempt, self.part, self.plan
        options = [
            f"--nodes={len(attempt.nodes)}",
            f"--ntasks={attempt.tasks}",
            f"--ntasks-per-node={part['tasks_per_node']}",
            f"--nodelist={','.join(attempt.nodes)}",
            f"--cpus-per-task={part['cpus_per_task']}",
            *([f"--cpu-bind={plan['cpu_bind']}"] if plan["cpu_bind"] != "none" else []),
            "--distribution=block:block",
            "--kill-on-bad-exit=1",
            "--label",
            # Slurm may still count CPUs of a step that died with its node as in use, and would wait for them forever.
            *(["--overlap"] if self.again else []),
        ]
        task = [*plan["rank_prefix"], *frozen.module(self.record.run, "launcher.task")]
        task += [str(self.notes), str(self.stem), self.beats.address]
        return [*options, *plan["srun"], *plan["rank_srun"], *IGNORANT, *task, *part["command"]]

    def follow(self) -> Outcome | None:
        """Wait for the ranks to end. Returns an outcome if they had to be ended."""
        failed_at: float | None = None
        while not self.allocation.wait(LOOK_SECONDS):
            self.progress.look()
            if spike := self.spikes.new():
                self.alerts.tell("spike", spike)
            if self.replaced is None and (found := self.slow.look(self.progress.beat)):
                self.replaced = found
                say(f"{found[1]}; asking the ranks to stop for a spare")
                self.allocation.ask_to_stop()
            if stuck := self.progress.stuck():
                self.attempt.failed = self.progress.moved
                self.write_stacks()
                return Outcome("hang", f"{stuck}; the stacks of all ranks are in their logs")
            if gone := self.gone():
                self.attempt.failed = time.time()
                say(f"{', '.join(gone)}: no heartbeat and no answer; ending the other ranks")
                self.end_ranks()
                return Outcome("crash", f"{', '.join(gone)} fell silent: node failure", blamed=tuple(gone))
            now = time.monotonic()
            if failed_at is None and any(note["code"] not in (FINISHED, STOPPED) for note in read_notes(self.notes)):
                failed_at = now
            if failed_at is not None and now - failed_at > AFTERMATH_SECONDS:
                self.end_ranks()
        return None

    def gone(self) -> Sequence[str]:
        """Nodes that stopped sending heartbeats and whose hosts do not answer either."""
        if self.slurmd is None:
            return []
        silent = self.beats.silent(self.name, self.attempt.nodes)
        return [node for node in silent if not answers(node, self.slurmd)]

    def end_ranks(self) -> None:
        """End the remaining ranks, and srun."""
        assert self.allocation.srun is not None
        self.allocation.srun.kill(self.allocation.job)

    def write_stacks(self) -> None:
        """Send SIGABRT, on which every rank writes its threads' stacks and exits; a suspended one is continued first."""
        say("no progress: asking every rank for its stacks")
        for name in ("ABRT", "CONT"):
            if trouble := signal_steps(self.allocation.job, name):
                say(trouble)
        self.allocation.wait(END_SECONDS)


def node_port() -> int | None:
    """The port that the daemons of all nodes listen on; None if Slurm does not report it."""
    try:
        text = slurm.configuration().get("SlurmdPort", "")
    except UserError:
        return None
    return int(text) if text.isdecimal() else None

"""The supervisor, the only process of a job's batch script: starts the ranks, follows their steps, judges each end.

    python RUN/launch/code launcher.job RUN PHASE

It uses the standard library only and runs outside the container, so that it can report any failure inside.
"""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import time
from pathlib import Path

from launcher import frozen
from launcher.again import all_excluded, fewer_nodes, lost_nodes, partition_nodes, patiently, queue_again, shown
from launcher.alerts import Alerts
from launcher.allocation import Allocation
from launcher.beats import SILENT_SECONDS, Beats
from launcher.checks import preflight
from launcher.goodput import earlier
from launcher.keepers import Keepers
from launcher.outcome import Outcome, read_notes
from launcher.record import Attempt, Record, glimpse, write_json
from launcher.rules import (
    ASIDE,
    STOPPED,
    Decision,
    Rule,
    decide,
    nodes_here,
    slow_nodes,
    usable_nodes,
    without_progress,
)
from launcher.say import say
from launcher.slow import SlowNode
from launcher.task import node_name
from launcher.watch import Watch
from onediff.errors import UserError

RETRY_SECONDS, STORAGE_SECONDS = 5.0, 600.0
"""Seconds between attempts to write into the run's folder, and how long it may be unreachable before the job gives up."""


PAUSES = (0.0, 10.0, 60.0, 300.0)
"""Seconds before a restart within the job, by the number of attempts in a row without progress: storage may be away for
minutes."""


class Supervisor:
    """The attempts of one phase inside one Slurm job."""

    def __init__(self, run: Path, phase: str) -> None:
        self.record, self.phase = Record(run), phase
        self.plan = self.record.submitted_plan()
        self.part = self.plan["phases"][phase]
        self.rule = Rule(**self.plan["rule"])
        self.allocation = Allocation(self.plan)
        self.attempts = self.record.attempts(phase)
        self.alerts = Alerts(self.plan.get("alerts", {}), str(run), phase)
        self.keepers: Keepers | None = None
        """Keepers of in-memory checkpoints, if the phase makes any."""
        self.fit: set[str] = set()
        """Nodes that passed their pre-flight check in this job and have not been suspect since."""

    def run(self) -> int:
        """Run attempts until the phase ends or the job has to be requeued. Returns the job's exit code."""
        if self.record.finished(self.phase):
            say(f"phase {self.phase} has already finished")
            return 0
        self.fence()
        decision = self.close_vanished()
        if decision and decision.action == "fail":
            return self.act(decision)
        self.beats = Beats(node_name())
        nodes = self.allocation.nodes
        while True:
            self.begin(nodes)
            decision = self.end(self.check(nodes) or self.warned() or self.train(nodes))
            nodes = nodes_here(decision, self.attempts, self.allocation.still_ours(), self.part)
            if not nodes:
                return self.act(decision)
            self.restart(nodes)

    def fence(self) -> None:
        """End ranks of the last attempt that may still run on a lost node: two attempts must never write the same run."""
        if not self.attempts or self.attempts[-1].launched is None:
            return
        last = self.attempts[-1]
        exits, deadline = self.record.exits(self.phase, last.number), time.monotonic() + self.plan["fence_seconds"]
        if len(read_notes(exits)) < last.tasks:
            self.supersede(last)
            say(
                f"not every rank of attempt {last.number} reported its end; giving those that may still run time to stop"
            )
        while len(read_notes(exits)) < last.tasks and time.monotonic() < deadline:
            time.sleep(1)

    def supersede(self, attempt: Attempt) -> None:
        """Write the mark that makes surviving ranks of `attempt` end themselves."""
        mark = self.record.superseded(self.phase, attempt.number)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def close_vanished(self) -> Decision | None:
        """The decision about the last attempt if its supervisor died without recording one, else None."""
        if not self.attempts or self.attempts[-1].ended is not None:
            return None
        last = self.attempts[-1]
        gone = lost_nodes(last.nodes)
        status = self.record.status()
        heeded = status.get("state") == "stopped" and status.get("phase") == self.phase
        if heeded and not gone and float(status.get("updated", 0)) > last.started:
            why = f"stopped on request with a checkpoint ({status.get('reason') or 'signal'})"
            return self.close(last, Outcome("stopped", f"{why}, then preempted or killed by Slurm"))
        because = f"node failure on {', '.join(gone)}" if gone else "preempted or killed by Slurm, or its node failed"
        last.blamed = gone
        return self.close(last, Outcome("vanished", f"ended without a trace: {because}"))

    def begin(self, nodes: list[str]) -> None:
        """Record the start of an attempt."""
        number = len(self.attempts) + 1
        tasks = len(nodes) * self.part["tasks_per_node"]
        step = max([self.record.step(self.phase), *(attempt.last_step or 0 for attempt in self.attempts)])
        self.attempts.append(Attempt(number, self.allocation.job, nodes, tasks, time.time(), step))
        self.keep()
        say(f"phase {self.phase}, attempt {number} on {len(nodes)} nodes, from step {step}")

    def keep(self) -> None:
        """Write the attempts, waiting while storage is unreachable so that no attempt's end is lost."""
        deadline = time.monotonic() + STORAGE_SECONDS
        while True:
            try:
                self.record.write_attempts(self.phase, self.attempts)
                told = glimpse(self.record.folder / "goodput.json")
                write_json(self.record.folder / "goodput.json", {**told, self.phase: earlier(self.record, self.phase)})
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"{self.record.folder}: storage: {error.strerror}; giving up") from None
                say(f"{self.record.folder}: {error.strerror}; retrying")
                time.sleep(RETRY_SECONDS)

    def check(self, nodes: list[str]) -> Outcome | None:
        """Check those of `nodes` that have not passed yet. Returns an outcome if some are unfit."""
        name = f"{self.phase}.{self.attempts[-1].number}"
        unknown = [node for node in nodes if node not in self.fit]
        outcome = preflight(self.allocation, self.record, self.part, name, unknown)
        if outcome is None or outcome.cause == "bad node":
            self.fit |= {*unknown} - {*(outcome.blamed if outcome else ())}
        return outcome

    def warned(self) -> Outcome | None:
        """Return an outcome if Slurm's warning or `onediff launch cancel` came while no rank was running."""
        if self.allocation.warned or os.path.exists(self.record.folder / "cancelled"):
            return Outcome("stopped", "warned of the job's end before the ranks started", STOPPED)
        return None

    def train(self, nodes: list[str]) -> Outcome:
        """Start the ranks on as many of `nodes` as the phase uses, and follow them to their end."""
        attempt, part = self.attempts[-1], self.part
        most = min(len(nodes), part["nodes"][1])
        count = usable_nodes(most, part["tasks_per_node"], part["tensor"], *part["batch"])
        if not count:
            return Outcome("bad input", f"the global batch of {part['batch'][0]} cannot be split over {most} nodes")
        # Slurm numbers ranks in the order of the allocation's nodes, regardless of the order in --nodelist.
        attempt.nodes = sorted(nodes[:count], key=self.allocation.nodes.index)
        attempt.tasks = count * part["tasks_per_node"]
        attempt.launched = time.time()
        self.keep()
        part = {**part, "command": [*part["command"], *self.copies(attempt.nodes)]}
        spares = [node for node in nodes if node not in attempt.nodes and node not in slow_nodes(self.attempts)]
        slow = SlowNode(attempt, self.rule, spares)
        return Watch(self.allocation, self.record, self.phase, part, attempt, self.beats, self.alerts, slow).run()

    def copies(self, nodes: list[str]) -> list[str]:
        """Arguments for ranks on `nodes` that name the keepers' folder; empty if there are no keepers."""
        if not self.part.get("peer_copies"):
            return []
        if self.keepers is None or not self.keepers.alive:
            self.keepers = Keepers(self.allocation.job, self.plan, self.record.run, self.allocation.nodes)
        return self.keepers.words() if self.keepers.link(nodes) else []

    def finish(self) -> None:
        """Stop the processes beside the ranks."""
        self.alerts.finish()
        if self.keepers is not None:
            self.keepers.end()

    def end(self, outcome: Outcome) -> Decision:
        """Close the running attempt. Raises UserError if a later one has taken over the phase."""
        if os.path.exists(self.record.superseded(self.phase, self.attempts[-1].number)):
            raise UserError("Slurm lost this node and started the phase elsewhere; this attempt ends unrecorded")
        return self.close(self.attempts[-1], outcome)

    def close(self, attempt: Attempt, outcome: Outcome) -> Decision:
        """Record how an attempt ended and what to do next."""
        if os.path.exists(self.record.folder / "cancelled") and outcome.cause != "finished":
            outcome = outcome._replace(cause="cancelled", reason="cancelled by `onediff launch cancel`")
        attempt.ended = time.time()
        attempt.last_step = max(self.record.step(self.phase), attempt.first_step)
        attempt.cause, attempt.reason, attempt.exit_code = outcome.cause, outcome.reason, outcome.exit_code
        attempt.log, attempt.blamed = outcome.log, attempt.blamed or list(outcome.blamed)
        decision = decide(self.attempts, self.rule)
        attempt.action = decision.action
        self.keep()
        self.tell(attempt, decision)
        return decision

    def tell(self, attempt: Attempt, decision: Decision) -> None:
        """Send the alerts about the end of an attempt."""
        if decision.action in ("done", "fail"):
            self.alerts.tell("end", "finished" if decision.action == "done" else f"stopped for good: {decision.why}")
            return
        self.alerts.tell("hang" if attempt.cause == "hang" else "failure", attempt.reason or "")
        if idle := without_progress(self.attempts):
            self.alerts.tell("no progress", f"{idle} attempts in a row got no further than step {attempt.last_step}")

    def restart(self, nodes: list[str]) -> None:
        """Prepare for the next attempt in this job; the last one is over, even if some of its ranks still run."""
        last = self.attempts[-1]
        last.action = "restart"
        self.keep()
        # If ranks lost contact and no node is to blame, every node is checked again.
        self.fit = self.fit - {*last.blamed} if last.blamed or last.cause == "interrupted" else set()
        say(f"restarting in this job on {', '.join(nodes)}: {last.reason}")
        self.alerts.tell("restart", f"restarting in the job on {', '.join(nodes)}, from step {last.last_step}")
        name = f"{self.phase}.{last.number}"
        idle = 0 if last.cause in ASIDE else without_progress(self.attempts)
        self.allocation.ending.wait(PAUSES[min(idle, len(PAUSES) - 1)])
        told = {note["node"] for note in read_notes(self.record.exits(self.phase, last.number))}
        ended = self.allocation.srun.heard() if self.allocation.srun else set()
        missing = {*last.nodes} - told - ended
        if last.launched is None or not missing:
            return
        # Ranks survive only on nodes that Slurm lost. They learn that the attempt is over, or cannot be reached.
        self.supersede(last)
        self.beats.over.add(name)
        deadline = time.monotonic() + self.plan["fence_seconds"]
        while time.monotonic() < deadline:
            heard = [gap for node in missing if (gap := self.beats.since(name, node)) is not None]
            if all(gap > SILENT_SECONDS for gap in heard):
                return
            time.sleep(1)

    def act(self, decision: Decision) -> int:
        """Carry out the decision. On a requeue Slurm ends this process."""
        say(f"{decision.action}: {decision.why}")
        if decision.action == "done":
            return 0
        if decision.action == "fail":
            return 1
        # Slurm's SIGTERM for the requeue also reaches child processes; scontrol must outlive it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        job = self.allocation.job
        try:
            fields = patiently(lambda: shown(job), say)
            if fields.get("JobState") != "RUNNING" and fields.get("Reason") != "TimeLimit":
                return 1  # Slurm requeues after a node failure or a preemption; a cancelled job must stay cancelled
            excluded, count = all_excluded(fields, decision.exclude), None
            if decision.exclude:
                known = partition_nodes(self.plan.get("partition") or fields["Partition"])
                count = fewer_nodes(known, excluded, self.part)
            if count == 0:
                return self.stop(f"with {', '.join(excluded)} excluded, too few nodes are left to split the batch")
            if excluded:
                say(f"excluding {', '.join(excluded)}{f', continuing on {count} nodes' if count else ''}")
            patiently(lambda: queue_again(job, excluded, count, self.part["tasks_per_node"]), say)
        except UserError as error:
            return self.stop(f"cannot be requeued: {error}")
        return 1

    def stop(self, why: str) -> int:
        """End the phase if Slurm does not let it continue."""
        last = self.attempts[-1]
        last.action, last.reason = "fail", f"{last.reason}; {why}"
        self.keep()
        say(f"fail: {last.reason}")
        return 1


def main(run: Path, phase: str) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")  # a rank's last words may not fit the node's locale
    try:
        frozen.check(run / "launch")
        supervisor = Supervisor(run, phase)
        try:
            return supervisor.run()
        finally:
            supervisor.finish()
    except UserError as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

"""The supervisor: the one process of a job's batch script. Starts the ranks, follows their steps, judges each end.

    python RUN/launch/code launcher.job RUN PHASE

Standard library only, and outside the container, so that what goes wrong in there can be told from here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launcher import frozen
from launcher.again import (
    PATIENCE_SECONDS,
    RETRY_SECONDS,
    all_excluded,
    fewer_nodes,
    lost_nodes,
    partition_nodes,
    patiently,
    queue_again,
    requeued,
    shown,
)
from launcher.environment import for_ranks
from launcher.outcome import Outcome, judge, read_notes, silent_nodes, sum_verdict
from launcher.preflight import read_findings, verdict
from launcher.record import Attempt, Record, names_in
from launcher.rules import Decision, Rule, decide, usable_nodes
from launcher.step import END_SECONDS, Step, signal_steps
from onediff.errors import UserError
from onediff.ranks import expand_nodes

LOOK_SECONDS = 5.0
"""Pause between two looks at the step and at the notes of ranks."""
STORAGE_SECONDS = 600.0
"""How long the run's folder may be out of reach before a job gives up."""
SRUN = ["srun", "--export=ALL"]
"""Where jobs are submitted with `--export=NONE`, srun would drop the profile's variables, too."""
IGNORANT = ["sh", "-c", 'trap "" TERM USR1; exec "$@"', "sh"]
"""Before a task: a signal before its first line of Python must not end it."""
AFTERMATH_SECONDS = 60.0
"""How long srun may go on once a rank has failed: it would wait forever for ranks on a node that is gone."""


class Supervisor:
    """One attempt of one phase, inside a Slurm job."""

    def __init__(self, run: Path, phase: str) -> None:
        self.record, self.phase = Record(run), phase
        self.plan = self.record.submitted_plan()
        self.part = self.plan["phases"][phase]
        self.rule = Rule(**self.plan["rule"])
        self.job = os.environ["SLURM_JOB_ID"]
        self.nodes = expand_nodes(os.environ["SLURM_JOB_NODELIST"])
        self.attempts = self.record.attempts(phase)
        self.srun: Step | None = None
        self.told_to_end = threading.Event()
        # slurmd signals the batch script as well as the ranks; its work is to see how they end.
        signal.signal(signal.SIGTERM, self.on_end)
        signal.signal(signal.SIGUSR1, self.on_warning)

    def run(self) -> int:
        """One attempt from the record of the earlier ones to the decision; returns the job's exit code."""
        if self.record.finished(self.phase):
            say(f"phase {self.phase} is finished already")
            return 0
        self.fence()
        decision = self.close_vanished()
        if decision and decision.action == "fail":
            return self.act(decision)
        self.begin()
        outcome = self.preflight() or self.train()
        return self.act(self.end(outcome))

    def fence(self) -> None:
        """Ends ranks of the last attempt that may live on where Slurm lost their node: two must not write one run."""
        if not self.attempts or self.attempts[-1].cause == "bad node":
            return
        last = self.attempts[-1]
        exits, deadline = self.record.exits(self.phase, last.number), time.monotonic() + self.plan["fence_seconds"]
        if len(read_notes(exits)) < last.tasks:
            exits.mkdir(parents=True, exist_ok=True)
            self.record.superseded(self.phase, last.number).touch()
            say(f"not every rank of attempt {last.number} told its end; leaving those that may live on time to end")
        while len(read_notes(exits)) < last.tasks and time.monotonic() < deadline:
            time.sleep(1)

    def close_vanished(self) -> Decision | None:
        """The decision about an attempt whose supervisor died without a word, if the last one did."""
        if not self.attempts or self.attempts[-1].ended is not None:
            return None
        last = self.attempts[-1]
        gone = lost_nodes(last.nodes)
        status = self.record.status()
        heeded = status.get("state") == "stopped" and status.get("phase") == self.phase
        if heeded and not gone and float(status.get("updated", 0)) > last.started:
            why = f"stopped on request with a checkpoint ({status.get('reason') or 'signal'})"
            return self.close(last, Outcome("stopped", f"{why}, then preempted or killed by Slurm"))
        because = f"node failure of {', '.join(gone)}" if gone else "preempted or killed by Slurm, or its node failed"
        last.blamed = gone
        return self.close(last, Outcome("vanished", f"ended without a word: {because}"))

    def begin(self) -> None:
        tasks = len(self.nodes) * self.part["tasks_per_node"]
        number = len(self.attempts) + 1
        step = max([self.record.step(self.phase), *(attempt.last_step or 0 for attempt in self.attempts)])
        self.attempts.append(Attempt(number, self.job, self.nodes, tasks, time.time(), step))
        self.keep()
        say(f"phase {self.phase}, attempt {number} on {len(self.nodes)} nodes, from step {step}")

    def keep(self) -> None:
        """Writes the attempts, waiting while the storage is away: how an attempt ended must not be lost with it."""
        deadline = time.monotonic() + STORAGE_SECONDS
        while True:
            try:
                return self.record.write_attempts(self.phase, self.attempts)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"{self.record.folder}: storage: {error.strerror}; given up") from None
                say(f"{self.record.folder}: {error.strerror}; trying again")
                time.sleep(LOOK_SECONDS)

    def preflight(self) -> Outcome | None:
        """Checks every node; an outcome if some are unfit."""
        limits = {**self.plan["preflight"], "gpus": self.part["gpus"]}
        if not limits["enabled"]:
            return None
        notes = self.notes_folder().with_name(f"{self.phase}.{self.attempts[-1].number}.preflight")
        words = [self.plan["supervisor_python"], *self.module("launcher.preflight"), str(notes), json.dumps(limits)]
        options = [
            f"--nodes={len(self.nodes)}",
            f"--ntasks={len(self.nodes)}",
            "--ntasks-per-node=1",
            "--job-name=preflight",
        ]
        refused = self.step(
            [*SRUN, *options, *self.plan["srun"], *IGNORANT, *words],
            lambda: self.wait(limits["seconds"]),
            lambda: bool(read_findings(notes)),
        )
        if refused:
            return refused
        findings = read_findings(notes)
        if not findings and len(self.nodes) > 1:
            return Outcome("crash", f"no node answered the pre-flight: {self.last_words()}")
        unfit = verdict(findings, self.nodes)
        if not unfit and limits["all_reduce"]:
            refused, unfit = self.sums()
            if refused:
                return refused
        if not unfit:
            return None
        reason = "; ".join(f"{node}: {why}" for node, why in sorted(unfit.items()))
        return Outcome("bad node", f"pre-flight: {reason}", blamed=tuple(sorted(unfit)))

    def sums(self) -> tuple[Outcome | None, dict[str, str]]:
        """Has the ranks of every node sum a tensor through torch; why they never began, and the nodes that cannot."""
        part, notes = self.part, self.notes_folder().with_name(f"{self.phase}.{self.attempts[-1].number}.all-reduce")
        tasks = len(self.nodes) * part["tasks_per_node"]
        stem = self.record.logs / f"{self.phase}.{self.attempts[-1].number}.all-reduce"
        python = self.plan["rank_prefix"]
        program = [python[-1], *self.module("onediff.parallel.all_reduce"), str(notes / "figures.json"), "--per-node"]
        program += ["--gpus"] if part["gpus"] else []
        options = [f"--nodes={len(self.nodes)}", f"--ntasks={tasks}", f"--ntasks-per-node={part['tasks_per_node']}"]
        options += ["--distribution=block:block", "--job-name=all-reduce"]
        task = [*python, *self.module("launcher.task"), str(notes), str(stem)]
        refused = self.step(
            [*SRUN, *options, *self.plan["srun"], *self.plan["rank_srun"], *IGNORANT, *task, *program],
            lambda: self.wait(3 * self.plan["preflight"]["seconds"]),
            lambda: self.has_logs(stem),
        )
        return refused, {} if refused else sum_verdict(read_notes(notes), self.nodes, tasks)

    def train(self) -> Outcome:
        """Starts the ranks and follows them to their end."""
        attempt, part = self.attempts[-1], self.part
        count = usable_nodes(len(self.nodes), part["tasks_per_node"], part["tensor"], *part["batch"])
        if not count:
            return Outcome("bad input", f"{len(self.nodes)} nodes cannot share the global batch of {part['batch'][0]}")
        attempt.nodes, attempt.tasks = self.nodes[:count], count * part["tasks_per_node"]
        self.keep()
        stem = self.record.logs / f"{self.phase}.{attempt.number}"
        options = [
            f"--nodes={count}",
            f"--ntasks={attempt.tasks}",
            f"--ntasks-per-node={part['tasks_per_node']}",
            f"--nodelist={','.join(attempt.nodes)}",
            f"--cpus-per-task={part['cpus_per_task']}",
            *([f"--cpu-bind={self.plan['cpu_bind']}"] if self.plan["cpu_bind"] != "none" else []),
            "--distribution=block:block",
            "--kill-on-bad-exit=1",
            "--label",
            f"--job-name={self.phase}",
        ]
        task = [*self.plan["rank_prefix"], *self.module("launcher.task"), str(self.notes_folder()), str(stem)]
        hang: str | None = None

        def follow() -> bool:
            nonlocal hang
            hang = self.follow(attempt)
            return self.wait(0)

        refused = self.step(
            [*SRUN, *options, *self.plan["srun"], *self.plan["rank_srun"], *IGNORANT, *task, *part["command"]],
            follow,
            lambda: self.has_logs(stem),
        )
        if refused and not hang:
            return refused
        assert self.srun is not None
        notes = read_notes(self.notes_folder())
        finished, status = self.record.finished(self.phase), self.record.status()
        ended = self.told_to_end.is_set()
        outcome = judge(notes, attempt.nodes, attempt.tasks, finished, status, lost_nodes, ended, self.srun.heard())
        if hang:
            silent = silent_nodes(notes, attempt.nodes, attempt.tasks)
            lost = f"; {', '.join(silent)} fell silent: node failure" if silent else ""
            return Outcome("hang", hang + lost, outcome.exit_code, f"{stem}.rank0.log", tuple(silent))
        if outcome.cause == "stopped" and "SIGUSR1" in outcome.reason:
            return outcome  # a warning that was heeded; the end that follows it may be a preemption's
        return self.ended_by_slurm(outcome) if ended and outcome.cause != "finished" else outcome

    def ended_by_slurm(self, outcome: Outcome) -> Outcome:
        """What an outcome means where Slurm told this process to end, too."""
        if outcome.cause == "crash" and "node failure" in outcome.reason:
            return outcome
        fields = self.shown()
        if requeued(fields):
            if outcome.cause == "stopped":
                return outcome
            why = "preempted, or queued again with scontrol, before a checkpoint was written"
            return Outcome("interrupted", f"{why}; {outcome.reason}", outcome.exit_code)
        if fields.get("JobState") in ("COMPLETING", "CANCELLED"):
            return Outcome("cancelled", f"ended by Slurm or by scancel; {outcome.reason}", outcome.exit_code)
        return outcome

    def follow(self, attempt: Attempt) -> str | None:
        """Waits for the end of the ranks. Returns why, when they had to be ended because nothing moved."""
        rule = self.plan["hang"]
        step, moved, failed_at = self.record.step(self.phase), time.monotonic(), None
        first = True
        while not self.wait(LOOK_SECONDS):
            now, here = time.monotonic(), self.record.step(self.phase)
            if here != step:
                step, moved, first = here, now, False
            minutes = rule["start_minutes"] if first else rule["hang_minutes"]
            if now - moved > minutes * 60:
                self.write_stacks()
                return f"no step for {minutes:g} minutes after step {step}; the stacks of all ranks are in their logs"
            if failed_at is None and any(note["code"] not in (0, 75) for note in read_notes(self.notes_folder())):
                failed_at = now
            if failed_at is not None and now - failed_at > AFTERMATH_SECONDS:
                assert self.srun is not None
                self.srun.kill(self.job)
        return None

    def write_stacks(self) -> None:
        """SIGABRT makes every rank write the stacks of its threads and end; a stopped one first has to go on."""
        say("nothing moves: asking every rank for its stacks")
        for name in ("ABRT", "CONT"):
            if trouble := signal_steps(self.job, name):
                say(trouble)
        self.wait(END_SECONDS)

    def end(self, outcome: Outcome) -> Decision:
        if os.path.exists(self.record.superseded(self.phase, self.attempts[-1].number)):
            raise UserError("Slurm lost this node and started the phase elsewhere; this attempt ends without a word")
        return self.close(self.attempts[-1], outcome)

    def close(self, attempt: Attempt, outcome: Outcome) -> Decision:
        """Writes how an attempt ended and what follows from it."""
        if os.path.exists(self.record.folder / "cancelled") and outcome.cause != "finished":
            outcome = outcome._replace(cause="cancelled", reason="cancelled by `onediff launch cancel`")
        attempt.ended = time.time()
        attempt.last_step = max(self.record.step(self.phase), attempt.first_step)
        attempt.cause, attempt.reason, attempt.exit_code = outcome.cause, outcome.reason, outcome.exit_code
        attempt.log, attempt.blamed = outcome.log, attempt.blamed or list(outcome.blamed)
        decision = decide(self.attempts, self.rule)
        attempt.action = decision.action
        self.keep()
        return decision

    def act(self, decision: Decision) -> int:
        """Carries the decision out. For a requeue Slurm ends this process."""
        say(f"{decision.action}: {decision.why}")
        if decision.action == "done":
            return 0
        if decision.action == "fail":
            return 1
        # Slurm's SIGTERM for the requeue reaches our children too; scontrol must outlive it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            fields = patiently(lambda: shown(self.job), say)
            if fields.get("JobState") != "RUNNING" and fields.get("Reason") != "TimeLimit":
                return 1  # Slurm requeues by itself after a node failure or a preemption; a cancelled job must stay so
            excluded, count = all_excluded(fields, decision.exclude), None
            if decision.exclude:
                known = partition_nodes(self.plan.get("partition") or fields["Partition"])
                count = fewer_nodes(known, excluded, self.part)
            if count == 0:
                return self.stop(f"beside {', '.join(excluded)} (excluded) too few nodes are left to share the batch")
            if excluded:
                say(f"excluding {', '.join(excluded)}{f', on {count} nodes from now on' if count else ''}")
            patiently(lambda: queue_again(self.job, excluded, count, self.part["tasks_per_node"]), say)
        except UserError as error:
            return self.stop(f"cannot be queued again: {error}")
        return 1

    def stop(self, why: str) -> int:
        """Ends the phase after all, where Slurm does not let it go on."""
        last = self.attempts[-1]
        last.action, last.reason = "fail", f"{last.reason}; {why}"
        self.keep()
        say(f"fail: {last.reason}")
        return 1

    def step(self, words: list[str], follow: Callable[[], bool], begun: Callable[[], bool]) -> Outcome | None:
        """Starts srun and `follow`s it, again while what keeps it from starting passes; the outcome where it never began.

        What `follow` returns is whether srun has ended; it is ended if not. `begun` looks for a trace of its tasks.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.srun = Step(words, for_ranks(self.plan["environment"]))
            if not follow():
                self.srun.kill(self.job)
            refusal = None if begun() else self.srun.refusal()
            if self.told_to_end.is_set() and not begun():
                return self.ended_by_slurm(Outcome("interrupted", "ended before the ranks began"))
            if refusal is None:
                return None
            if not refusal.passes or time.monotonic() > deadline:
                return Outcome("refused" if refusal.final else "crash", refusal.words, blamed=refusal.nodes)
            say(f"{refusal.words}; trying again")
            self.told_to_end.wait(RETRY_SECONDS)

    def module(self, name: str) -> list[str]:
        return frozen.module(self.record.run, name)

    def has_logs(self, stem: Path) -> bool:
        """Whether a rank of the attempt began: each opens its log first."""
        return any(name.startswith(f"{stem.name}.rank") for name in names_in(stem.parent))

    def wait(self, seconds: float) -> bool:
        """Whether srun ended within `seconds`."""
        assert self.srun is not None
        return self.srun.wait(seconds)

    def last_words(self) -> str:
        assert self.srun is not None
        return self.srun.last_words()

    def shown(self) -> dict[str, str]:
        """This job as the controller has it; nothing when it does not answer."""
        try:
            return shown(self.job)
        except UserError as error:
            say(str(error))
            return {}

    def notes_folder(self) -> Path:
        return self.record.exits(self.phase, self.attempts[-1].number)

    def on_end(self, number: int, frame: object) -> None:
        self.told_to_end.set()

    def on_warning(self, number: int, frame: object) -> None:
        if self.srun is not None and self.srun.process.poll() is None:
            self.srun.process.send_signal(signal.SIGUSR1)


def say(text: str) -> None:
    """A line in the job's log."""
    try:
        print(f"onediff launch: {time.strftime('%H:%M:%S')} {text}", flush=True)
    except OSError:
        return  # the log lies on the storage that may be away; what is judged here goes on without it


def main(run: Path, phase: str) -> int:
    try:
        frozen.check(run / "launch")
        return Supervisor(run, phase).run()
    except UserError as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

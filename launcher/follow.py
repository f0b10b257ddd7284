"""The state of a run, from its folder and, if it answers, from Slurm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import flight, goodput, slurm
from launcher.goodput import spoken, summary
from launcher.outcome import read_notes, telling_line
from launcher.queue import marked
from launcher.record import Attempt, Record, last_lines
from launcher.sections import as_beat, in_words
from onediff.columns import in_columns
from onediff.errors import UserError

SILENT = "Slurm does not answer"


@dataclass
class PhaseState:
    """One row of `onediff launch status`."""

    phase: str
    job: str | None
    state: str
    """`finished`, `running`, `waiting`, `failed`, `cancelled`, `stopped` or `not submitted`."""
    nodes: int
    step: int
    steps_total: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    """Seconds until the end of the phase at the current speed."""
    restarts: int
    why: str
    """Why the phase is waiting, was restarted or ended."""
    at: str | None = None
    """What rank 0 is doing: `step`, `evaluation, 12 of 40`, `saving`, …"""
    goodput: dict[str, object] | None = None
    """Fraction of productive time, seconds by kind, and recoveries in seconds."""


class Listed(dict[str, slurm.Job]):
    """Jobs that Slurm lists, by id."""

    silent = ""
    """Slurm's error if it did not answer. The folders still tell most, but not what happens to a job between attempts."""


def look(records: Sequence[Record]) -> Listed:
    """The jobs of these runs that Slurm lists, in one query."""
    ids, listed = [job for record in records for job in record.latest_jobs().values()], Listed()
    try:
        listed |= slurm.jobs(ids) if ids and slurm.available() else {}
    except UserError as error:
        listed.silent = f"{SILENT} ({error})"
    return listed


def phase_states(record: Record, listed: Listed | None = None) -> list[PhaseState]:
    """The state of each phase in the plan. `listed` is a result of `look`, which may cover other runs too."""
    latest, plan = record.latest_jobs(), record.submitted_plan()
    if plan.get("kind") == "data":
        return [data_state(record, phase, latest.get(phase)) for phase in plan["phases"]]
    listed = look([record]) if listed is None else listed
    try:
        if slurm.available() and any(entry["job"] is None for entry in record.jobs()):  # an answer of sbatch was lost
            found = marked(record.run)
            latest |= {phase: job.job for phase, job in found.items()}
            listed |= {job.job: job for job in found.values()}
    except UserError as error:
        listed.silent = f"{SILENT} ({error})"
    return [phase_state(record, phase, latest.get(phase), listed) for phase in plan["phases"]]


def phase_state(record: Record, phase: str, job: str | None, listed: Listed) -> PhaseState:
    attempts = record.attempts(phase)
    last = attempts[-1] if attempts else None
    status = record.status() if record.status().get("phase") == phase else {}
    if record.finished(phase):
        final = record.final_metrics(phase)
        status = {"steps_total": final.get("step"), "loss": final.get("loss")}
    here = listed.get(job or "")
    state, why = judged(record, phase, here, last, job is not None or runs_locally(record), listed.silent)
    total = status.get("steps_total")
    step = total if record.finished(phase) and total else record.step(phase)
    left = None
    if state == "running" and last and total and step > last.first_step:
        left = (time.time() - last.started) / (step - last.first_step) * (total - step)
    return PhaseState(
        phase,
        job,
        state,
        len(last.nodes) if last else 0,
        step,
        total,
        status.get("loss"),
        status.get("tokens_per_second"),
        left,
        max(0, len(attempts) - 1),
        why,
        current_section(record, phase) if state == "running" else None,
        summary(record, phase) if attempts else None,
    )


def current_section(record: Record, phase: str) -> str | None:
    """What rank 0 was doing according to its last heartbeat."""
    beat = as_beat(record.beat(), phase)
    return None if beat is None else in_words(beat)


def data_state(record: Record, phase: str, job: str | None) -> PhaseState:
    """The combined state of a data job's tasks; a step is a finished task."""
    tasks, notes = record.plan()["phases"][phase]["tasks"], read_notes(record.exits(phase, 1))
    listed, silent = list[slurm.Job](), ""
    try:
        listed = slurm.listed([job]) if job and slurm.available() else []
    except UserError as error:
        silent = f"{SILENT} ({error})"
    running = sum(entry.state in ("RUNNING", "COMPLETING", "CONFIGURING") for entry in listed)
    waiting = [entry for entry in listed if entry.state == "PENDING"]
    failed = [note for note in notes if note["code"]]
    done = len(notes) - len(failed)
    ended = sorted({entry.state for entry in listed} - {"RUNNING", "PENDING", "COMPLETING", "CONFIGURING", "COMPLETED"})
    why = ""
    if failed:
        first = failed[0]
        why = f"task {first['rank']} on {first['node']} ended with exit code {first['code']}: {telling_line(first['last'])}"
    elif ended:
        why = f"Slurm: {', '.join(word.lower() for word in ended)}"
    if done == tasks:
        state, why = "finished", ""
    elif running:
        state = "running"
    elif waiting:
        state, why = "waiting", why or ("" if waiting[0].reason == "None" else waiting[0].reason)
    elif failed or ended:
        state = "cancelled" if ended == ["CANCELLED"] and not failed else "failed"
    elif silent:
        state, why = "waiting", silent
    else:
        state = "stopped" if job else "not submitted"
    return PhaseState(phase, job, state, running, done, tasks, None, None, None, 0, why)


def judged(
    record: Record, phase: str, here: slurm.Job | None, last: Attempt | None, submitted: bool, silent: str = ""
) -> tuple[str, str]:
    """State and reason; Slurm takes precedence over the folder. If Slurm is `silent`, a job may be queued again."""
    ended = last.reason or "" if last else ""
    if record.finished(phase):
        return "finished", ""
    if here and here.state == "PENDING":
        why = "" if here.reason == "None" else here.reason
        return "waiting", f"{why}; before: {ended}" if ended else why
    if here and here.state == "CONFIGURING":
        return "waiting", "nodes are booting"
    if here and here.state in ("RUNNING", "COMPLETING"):
        return "running", previous_end(record.attempts(phase))
    if last and last.cause == "cancelled":
        return "cancelled", ended
    if last and last.action == "fail":
        return "failed", ended
    if here and here.state in ("CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "COMPLETED", "DEADLINE"):
        word = "cancelled" if here.state == "CANCELLED" else "failed"
        return word, ended or f"Slurm: {here.state.lower()}"
    if last and last.ended is None:
        if last.is_local:
            return "running", previous_end(record.attempts(phase))
        return "running", f"according to the folder; {silent or 'Slurm does not list the job'}"
    if last and silent and not last.is_local:
        return "waiting", f"{silent}; before: {ended}"
    if last:
        return "stopped", ended
    return ("waiting", silent) if submitted else ("not submitted", "")


def runs_locally(record: Record) -> bool:
    """Whether a phase is running without Slurm (`--profile local`); the next ones then wait for it."""
    attempts = [attempt for phase in record.plan()["phases"] for attempt in record.attempts(phase)]
    return any(attempt.is_local and attempt.ended is None for attempt in attempts)


def previous_end(attempts: list[Attempt]) -> str:
    """Why the attempt before the current one ended."""
    ended = [attempt for attempt in attempts if attempt.ended is not None]
    return f"restarted: {ended[-1].reason}" if ended else ""


def table(states: list[PhaseState]) -> str:
    """The states as a text table."""
    rows = [("phase", "job", "state", "at", "nodes", "step", "loss", "tokens/s", "left", "restarts", "why")]
    for s in states:
        step = f"{s.step} of {s.steps_total}" if s.steps_total else str(s.step or "")
        loss = "" if s.loss is None else f"{s.loss:.4f}"
        pace = "" if s.tokens_per_second is None else f"{s.tokens_per_second:,.0f}"
        numbers = (step, loss, pace, "" if s.seconds_left is None else spoken(s.seconds_left), str(s.restarts))
        rows.append((s.phase, s.job or "", s.state, s.at or "", str(s.nodes or ""), *numbers, s.why))
    return "\n".join(in_columns(rows))


def explanation(record: Record) -> str:
    """What happened to a run, attempt by attempt, and what to do next."""
    lines = []
    states, is_data = phase_states(record), record.plan().get("kind") == "data"
    for state in states:
        attempts = record.attempts(state.phase)
        lines.append(f"{state.phase}: {state.state}{f' ({state.why})' if state.why else ''}")
        if spent := goodput.in_words(record, state.phase):
            lines.append(f"  {spent}")
        for attempt in attempts:
            lines += [f"  {line}" for line in told(attempt)]
        if state.state == "failed" and attempts and (log := attempts[-1].log):
            lines += [f"  last lines of {log}:", *(f"    {line}" for line in last_lines(Path(log), 10))]
        for note in [note for note in read_notes(record.exits(state.phase, 1)) if note["code"]] if is_data else []:
            lines += [f"  task {note['rank']} on {note['node']}: exit code {note['code']}, {note['log']}:"]
            lines += [f"    {line}" for line in note["last"][-5:]]
    if any(state.state != "finished" for state in states):
        logs = record.run / "logs"
        lines += [f"NCCL's flight records in {logs}: {line}" for line in flight.missing(logs)]
    lines.append(advice(record, states))
    return "\n".join(lines)


ACTIONS = {
    "restart": "restarted in the job",
    "requeue": "queued again",
    "fail": "stopped for good",
    "done": "done",
}


def told(attempt: Attempt) -> list[str]:
    """One or two lines about an attempt."""
    ranks = "1 rank" if attempt.tasks == 1 else f"{attempt.tasks} ranks"
    where = f"attempt {attempt.number}, job {attempt.job}, {ranks} on {', '.join(attempt.nodes)}"
    if attempt.ended is None:
        return [f"{where}: from step {attempt.first_step}, in {attempt.section or 'start'}, still running"]
    steps = f"steps {attempt.first_step} to {attempt.last_step}" if attempt.last_step else "no steps"
    then = ACTIONS.get(attempt.action or "", "")
    lines = [f"{where}: {steps}, {spoken(attempt.ended - attempt.started)}", f"  {attempt.reason}: {then}"]
    return lines if attempt.cause != "finished" else lines[:1]


def advice(record: Record, states: list[PhaseState]) -> str:
    kinds = {state.state for state in states}
    if kinds == {"finished"}:
        return "Everything has finished."
    if kinds & {"running", "waiting"} and not kinds & {"failed", "cancelled"}:
        return f"Follow it with: onediff launch status {record.run} --watch"
    again = record.plan().get("again") or f"onediff launch resume {record.run}"
    return f"Fix the problem above, then run: {again}"

"""Run the phases on this machine, with the same rules as on a cluster."""

from __future__ import annotations

import os
import time
from pathlib import Path

from launcher.local import run_local
from launcher.outcome import failure
from launcher.record import Attempt, Record, last_lines
from launcher.rules import FINISHED, STOPPED, Rule, decide
from onediff.errors import UserError


def run_chain(record: Record, phases: list[str]) -> int:
    """Run `phases` one after the other. Returns 0, or the exit code of the one that ended the chain."""
    plan = record.plan()
    rule = Rule(**plan["rule"])
    paths = [str(record.folder / "code"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **plan["environment"]}
    for phase in phases:
        part = plan["phases"][phase]
        attempts = record.attempts(phase)
        while True:
            number = len(attempts) + 1
            attempt = Attempt(
                number, f"pid {os.getpid()}", ["localhost"], part["tasks_per_node"], time.time(), record.step(phase)
            )
            attempts.append(attempt)
            record.write_attempts(phase, attempts)
            code = run_local(part["command"], attempt.tasks, log_dir=record.logs, name=f"{phase}.{number}", env=env)
            close(record, phase, attempt, code)
            decision = decide(attempts, rule)
            attempt.action = "fail" if code == STOPPED else decision.action  # a local run is stopped on purpose
            record.write_attempts(phase, attempts)
            if attempt.action == "done":
                break
            if attempt.action == "fail":
                print(f"onediff launch: {phase}: {decision.why}; continue with `onediff launch resume {record.run}`")
                return code or 1
    return 0


def close(record: Record, phase: str, attempt: Attempt, code: int) -> None:
    """Record how an attempt ended."""
    attempt.ended, attempt.exit_code = time.time(), code
    attempt.last_step = max(record.step(phase), attempt.first_step)
    if code == FINISHED and record.finished(phase):
        attempt.cause = attempt.reason = "finished"
    elif code == FINISHED:
        attempt.cause, attempt.reason = "crash", "every rank ended with exit code 0, but the phase is not finished"
    elif code == STOPPED:
        attempt.cause, attempt.reason = "stopped", "stopped on request with a checkpoint"
    else:
        log = record.logs / f"{phase}.{attempt.number}.rank0.log"
        note = {"rank": 0, "node": "localhost", "code": code, "log": str(log), "last": last_lines(log, 20)}
        outcome = failure(note, record.status(), record.plan().get("failures", ()))
        attempt.cause, attempt.reason, attempt.log = outcome.cause, outcome.reason, outcome.log


def run_folder(text: str) -> Path:
    """The folder of a run, given as a path or a name in `runs/`. Raises UserError if neither exists."""
    places = (Path(text), Path("runs") / text)
    for path in places:
        if (path / "launch").is_dir():
            return path.resolve()
    for path in places:
        if (path / "config.yaml").is_file():
            raise UserError(f"{path}: this run was started without `onediff launch`; see `onediff runs {path}`")
    raise UserError(
        f"{text}: no such run was submitted from here (neither {text}/launch nor runs/{text}/launch exists)"
    )

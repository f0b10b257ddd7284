"""Run one rank under srun: sets its place and its log, forwards warnings, and leaves a note of how it ended.

    python -m launcher.task NOTES LOG SUPERVISOR COMMAND …

Writes `LOG.rank<r>.log` and `NOTES/<r>.json`, and sends heartbeats to SUPERVISOR (`HOST:PORT`, or `-`). Its exit code hides
EX_TEMPFAIL: srun kills the other ranks at the first nonzero exit code, and ranks that stop together must be able to finish
their writes. Standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from launcher.beats import BEAT_SECONDS, Sender
from launcher.local import LastWritten, end_with, exit_code
from launcher.record import SUPERSEDED, last_lines, write_json
from launcher.rules import STOPPED
from onediff.ranks import Ranks

LISTEN_SECONDS = 1.0
"""Seconds between checks whether a rank that was warned during its imports handles signals yet."""
LAST_LINES = 20


def main(notes: Path, stem: str, supervisor: str, command: list[str]) -> int:
    """Run the rank. Returns its exit code, or 0 if it stopped on request."""
    place = Ranks.from_environment()
    # One task per node sends its heartbeats.
    sender = Sender(supervisor if place.local_rank == 0 else "-", notes.name, node_name())
    warned = heard = False
    told: str | None = None

    def remember(number: int, _: object) -> None:
        nonlocal warned, told
        warned = warned or (number == signal.SIGUSR1 and not heard)
        if number in (signal.SIGTERM, signal.SIGINT):
            told = told or signal.Signals(number).name

    # Slurm signals every process of the task at once, this one too. Unlike SIG_IGN, a handler is not inherited by the rank.
    for number in (signal.SIGTERM, signal.SIGABRT, signal.SIGCONT, signal.SIGINT):
        signal.signal(number, remember)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    log = Path(f"{stem}.rank{place.rank}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        # The rank inherits SIG_IGN: a warning during its imports must not end it.
        process = started(command, place)
        signal.signal(signal.SIGUSR1, remember)
        assert process.stdout is not None
        output, ended = process.stdout.fileno(), os.pidfd_open(process.pid)
        kept, reading = LastWritten(file), True
        look = time.monotonic()
        while reading:
            if time.monotonic() >= look:
                look = time.monotonic() + BEAT_SECONDS
                # A later attempt took over; Slurm lost this node and so did not end this one.
                if sender.beat() or os.path.exists(notes / SUPERSEDED):
                    process.kill()
            if warned and listens(process.pid):
                # Only once: a second warning would kill a rank that is exiting and no longer handles signals.
                process.send_signal(signal.SIGUSR1)
                warned, heard = False, True
            ready = select.select([output, ended, wake], [], [], LISTEN_SECONDS if warned else BEAT_SECONDS)[0]
            if wake in ready:
                os.read(wake, 64)
            if output in ready:
                written = os.read(output, 65536)
                reading = bool(written)
                kept.write(written)
                pass_on(written)
            elif ended in ready:
                reading = False
        kept.close()
    code = exit_code(process)
    leave_note(notes, place.rank, code, log, told)
    return 0 if code == STOPPED else code


def started(command: list[str], place: Ranks) -> subprocess.Popen[bytes]:
    """Start the rank, which dies with this process."""
    return subprocess.Popen(
        command,
        env=variables(place),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=partial(end_with, os.getpid()),
    )


def leave_note(notes: Path, rank: int, code: int, log: Path, told: str | None) -> None:
    """Write how a rank ended; `told` is the external signal it received before."""
    last = last_lines(log, LAST_LINES)
    note = {"rank": rank, "node": node_name(), "code": code, "ended": time.time(), "log": str(log), "last": last}
    write_json(notes / f"{rank}.json", {**note, "told": told})


def variables(place: Ranks) -> dict[str, str]:
    """The rank's environment."""
    return {
        "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1"),
        **os.environ,
        **place.variables(),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # SIGABRT ends a hang; this makes the rank write every thread's stack first
    }


def listens(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGUSR1."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def pass_on(written: bytes) -> None:
    """Write to srun, which collects the output of all ranks in the job's log."""
    try:
        while written:
            written = written[os.write(1, written) :]
    except OSError:
        return  # srun is gone; the rank's own log continues


def node_name() -> str:
    """Slurm's name for this node."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))

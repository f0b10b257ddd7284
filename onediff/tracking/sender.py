"""The process that sends a run's journals to MLflow: `python -m onediff.tracking.sender RUN PID`.

It ends when it is told to and everything is sent, or when the process PID that started it is gone. It ignores signals meant
for training (Ctrl-C, Slurm's signals), because it still has to send the last records.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from onediff.tracking.journal import openings
from onediff.tracking.state import State, journals

if TYPE_CHECKING:
    from onediff.tracking.shipper import Shipper

LOG = logging.getLogger(__name__)
ORPHAN_SECONDS = 10.0  # to send the rest after the training process was killed
LONGEST_PAUSE = 30.0  # between two tries while the store does not answer
TRIES_AT_THE_END = 3


def main(run: Path, parent: int) -> int:
    """Follows the journals of `run` until the end of the process `parent`. Returns 0 when everything is sent."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    # Messages for people go to the training's stderr, the output of libraries to a file.
    told = os.fdopen(os.dup(2), "w", buffering=1)
    log = os.open(run / "tracking" / "sender.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    with sole_sender(run, parent) as free:
        return follow(run, parent, told) if free else 1


def follow(run: Path, parent: int, told: TextIO) -> int:
    """Sends until told to finish or orphaned."""
    from onediff.tracking.shipper import Shipper
    from onediff.tracking.store import one_try

    def say(line: str) -> None:
        LOG.warning("%s", line)
        print(f"tracking: {line}", file=told, flush=True)

    shipper = Shipper(run, say=say)
    one_try(shipper.config.request_seconds)
    carrying = Carrying(shipper)
    failures, last_tries, finishing, deadline = 0, 0, False, float("inf")
    while True:
        try:
            shipper.ship()
            if failures:
                say(f"MLflow answers again after {failures} failed tries")
            failures = last_tries = 0
            carrying.go_on(finishing)
        except Exception as error:  # a store, a proxy or a network may answer anything
            failures += 1
            last_tries += finishing
            LOG.warning("try %d: %s: %s", failures, type(error).__name__, error)
            if failures == 1:
                where = shipper.state.where.split()[0]
                why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                say(f"MLflow at {where} fails ({why}); the run continues, and its journal keeps everything")
        through = not failures and not shipper.state.waiting()
        if os.getppid() != parent:
            deadline = min(deadline, time.monotonic() + ORPHAN_SECONDS)
            if through and started_by(run, parent):
                shipper.end_as("KILLED")
            if through and not shipper.state.parcels():
                return 0
            if time.monotonic() > deadline:
                return 1
        if finishing and ((through and carrying.done()) or last_tries >= TRIES_AT_THE_END):
            return 1 if failures or shipper.state.parcels() else 0
        pause = min(LONGEST_PAUSE, 2.0**failures) if failures else shipper.config.flush_seconds
        finishing = wait(pause, parent, finishing) or finishing


class Carrying:
    """A thread that sends the parcels, so that a large one does not delay the points."""

    def __init__(self, shipper: Shipper) -> None:
        self.shipper = shipper
        self.thread = threading.Thread()
        self.last_tries = 0

    def go_on(self, finishing: bool) -> None:
        """Unless the thread is busy, makes it try the parcels that are due, or all of them at the end."""
        ready = any(finishing or parcel.due <= time.time() for _, _, parcel in self.shipper.state.parcels())
        if ready and not self.thread.is_alive() and self.last_tries < TRIES_AT_THE_END:
            self.last_tries += finishing
            self.thread = threading.Thread(target=self.shipper.carry, args=(finishing,), daemon=True)
            self.thread.start()

    def done(self) -> bool:
        """Whether all have arrived or, at the end, have failed often enough."""
        return not self.thread.is_alive() and (not self.shipper.state.parcels() or self.last_tries >= TRIES_AT_THE_END)


def wait(seconds: float, parent: int, finishing: bool) -> bool:
    """Sleeps until told to finish (returns True), until `parent` is gone, or until the time is up."""
    end = time.monotonic() + (min(seconds, 1.0) if finishing else seconds)
    while (left := end - time.monotonic()) > 0 and os.getppid() == parent:
        if finishing:
            time.sleep(min(left, 0.2))
        elif select.select([0], [], [], min(left, 0.5))[0]:
            return True
    return False


@contextmanager
def sole_sender(run: Path, parent: int) -> Iterator[bool]:
    """Holds the lock that keeps a second sender from a run; yields whether it was acquired.

    Waits for it as long as `parent` lives and, once told to finish, until the other sender has sent everything written
    by then. With 0 for `parent`, it does not wait.
    """
    wanted: dict[str, int] | None = None
    with open(run / "tracking" / "sender.lock", "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not parent or os.getppid() != parent or (wanted and sent_up_to(run, wanted)):
                    yield False
                    return
            if wait(0.2, parent, wanted is not None):
                wanted = {path.stem: path.stat().st_size for path in journals(run)}
        yield True


def sent_up_to(run: Path, sizes: dict[str, int]) -> bool:
    """Whether the first `sizes[name]` bytes of every journal have been sent to MLflow, or have failed."""
    state = State.load(run)
    there = all(state.sent(name).offset >= size for name, size in sizes.items())
    return there and all(parcel.why or int(place) >= sizes.get(name, 0) for name, place, parcel in state.parcels())


def started_by(run: Path, process: int) -> bool:
    """Whether the run's last start was by `process`, so it has not been resumed since."""
    starts = openings(run / "tracking" / "run.jsonl")
    return bool(starts) and starts[-1][1].get("pid") == process


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))

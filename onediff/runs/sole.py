"""One training at a time per run: two would remove each other's checkpoints and mix their records."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from onediff.errors import UserError

log = logging.getLogger(__name__)

FILE = ".training.lock"
WAIT_SECONDS = 20.0
"""Longest wait for the process that holds a run: one that was killed may need a moment to end."""


def sole_training(run: Path) -> IO[str]:
    """Locks a run's folder until the returned file is closed, or this process ends in any way.

    Raises UserError if another process of this machine trains the run. A holder on another machine is only warned about: the
    lock of a machine that is gone may outlive it by far. Does nothing on a file system without locks.
    """
    file = (run / FILE).open("a+", encoding="utf-8")
    deadline = time.monotonic() + WAIT_SECONDS
    # A record lock: forked data workers do not inherit it, so they cannot outlive this process with it.
    while not _locked(file):
        if time.monotonic() < deadline:
            time.sleep(0.5)
            continue
        file.seek(0)
        holder = file.read().strip() or "another process"
        if holder.endswith(f" on {os.uname().nodename}"):
            raise UserError(f"{run}: {holder} is training this run; wait for its end, or stop it first")
        log.warning(
            "%s: %s held this run and may still train it; two trainings spoil each other's checkpoints", run, holder
        )
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file


def _locked(file: IO[str]) -> bool:
    """Whether this process has the lock now, or the file system has none."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.debug("%s cannot be locked: %s", file.name, error)
    return True

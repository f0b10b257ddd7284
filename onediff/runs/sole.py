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
WAIT_SECONDS = 180.0
"""Longest wait for a process on another machine: file servers take a minute or two to notice that a machine is gone."""


def sole_training(run: Path) -> IO[str]:
    """Locks a run's folder until the returned file is closed, or this process ends in any way.

    Raises UserError if another process trains the run. Does nothing on a file system without locks.
    """
    file = (run / FILE).open("a+", encoding="utf-8")
    deadline, told = time.monotonic() + WAIT_SECONDS, False
    while True:
        try:
            # A record lock: forked data workers do not inherit it, so they cannot outlive this process with it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip()
            if holder.endswith(f" on {os.uname().nodename}") or time.monotonic() > deadline:
                raise UserError(
                    f"{run}: {holder or 'another process'} is training this run; wait for its end, or stop it first"
                ) from None
            if not told:
                log.warning("%s: %s still holds this run; waiting for its end", run, holder or "another process")
            told = True
            time.sleep(1)
        except OSError:
            return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file

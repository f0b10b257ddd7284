"""Start, follow and end one run of a search, on Slurm or on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launcher.cancel import cancel
from launcher.follow import SILENT
from launcher.local import end_with
from launcher.profile import ClusterProfile
from launcher.queue import active_jobs
from launcher.record import Record
from launcher.run import GOING, Run
from launcher.search import Going, Start
from launcher.submission import Submission, checked, queue
from onediff.config.compose import load_run

STOP_SECONDS = 120.0
"""Seconds for a local run to write its checkpoint."""


class Queued:
    """A run on Slurm."""

    def __init__(self, path: Path) -> None:
        self.run = Run(path)
        self.is_told = False
        """Whether the user knows that Slurm does not answer."""

    def state(self) -> str:
        """See `Going`. A run is going as long as Slurm does not answer."""
        states = self.run.status()
        silent = next((one.why for one in states if one.state in GOING and SILENT in one.why), None)
        if silent and not self.is_told:
            print(f"{self.run.path.name}: {silent}; asking again", file=sys.stderr, flush=True)
        self.is_told = silent is not None
        if ended := next((one for one in states if one.state in ("failed", "cancelled")), None):
            return f"{ended.phase} {ended.state}: {ended.why}"
        if any(one.state in GOING for one in states):
            return "going"
        stopped = next((one for one in states if one.state != "finished"), None)
        return f"{stopped.phase} {stopped.state}: {stopped.why}" if stopped else "finished"

    def end(self) -> None:
        """See `Going`."""
        cancel(self.run.record, now=True, wait=0)

    def leave(self) -> None:
        """See `Going`."""


class Here:
    """A run on this machine, in its own process; its output goes to `<folder>/search.log`."""

    def __init__(self, path: Path, words: Sequence[str]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        with (path / "search.log").open("ab") as log:
            command = [sys.executable, "-m", "onediff", "launch", "submit", *words]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the search, which then ends its runs once
                preexec_fn=partial(end_with, os.getpid()),
            )

    def state(self) -> str:
        """See `Going`."""
        code = self.process.poll()
        if code is None:
            return "going"
        return "finished" if code == 0 else f"ended with exit code {code}; see {self.path / 'search.log'}"

    def end(self) -> None:
        """See `Going`."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def leave(self) -> None:
        """End the run: a local run cannot outlive the search."""
        self.end()


def starter(
    file: str, fixed: Sequence[str], search: str, profile: ClusterProfile, profile_name: str, nodes: str
) -> Start:
    """A function that starts the run of a folder, or follows it again."""

    def start(path: Path, overrides: Sequence[str]) -> Going:
        said = [file, *fixed, *overrides]
        own = [f"name={path.name}", f"tracking.sweep={search}"]
        if profile.scheduler == "local":
            return Here(path, [*said, *own, "--run", str(path), "--profile", profile_name])
        record = Record(path)
        if not record.latest_jobs() and not active_jobs(record):
            config = load_run(file, [*said[1:], *own])
            ready = checked(Submission(config, path, profile, nodes, said=said))
            if ready.phases:
                queue(ready)
        return Queued(path)

    return start

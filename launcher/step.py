"""One srun of a job: how it ended, what it printed, and whether a failure to start is temporary.

Standard library only.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from launcher.slurm import PASSING, command, refusal
from onediff.errors import UserError

END_SECONDS = 10.0
"""Seconds for the ranks to write their stacks after a hang, and for srun to end after its ranks."""

CANNOT = re.compile(
    r"unrecognized option|invalid option|requires an argument|doesn't allow an argument|ambiguous|fatal: "
    r"|[Ii]nvalid .*specification|[Ii]nvalid (option|argument|generic resource|feature|numeric value)"
    r"|mutually exclusive|than permitted|Memory required by task|not supported|Only allocated"
    r"|Invalid MPI type|find the specified plugin"
)
"""srun's messages about options that this allocation rejects; retrying would not help."""
OWN = re.compile(r"srun: (?!Warning: )|(\d+: )?slurmstepd[\w.-]*: error: ")
"""A line from Slurm itself among those of the tasks."""
BEGAN = re.compile(r"error: \S+: tasks? [\d,\- ]+: |tasks? [\d,\- ]+ (launch|start)")
"""srun's message about tasks that ended, which means they had been started."""
ENDED = re.compile(r"error: (?P<node>[\w.-]+): tasks? [\d,\- ]+: ")
ON_NODE = re.compile(r"(?:launch .*failed on node|Node failure on) (?P<node>[\w.-]+)")


KEEPERS = "keepers"
"""Name of the step without ranks; see `launcher.keepers`."""


class Refusal(NamedTuple):
    """Why srun started nothing."""

    words: str
    passes: bool = False
    """Whether a retry may succeed."""
    final: bool = False
    """Whether a retry would fail the same way."""
    nodes: tuple[str, ...] = ()
    """The nodes it names."""


class Step:
    """A running srun in `environment`; its output goes to the job's log. Raises UserError if srun is missing."""

    def __init__(self, words: Sequence[str], environment: dict[str, str]) -> None:
        try:
            # In a new session: srun would end its ranks at once if it received a signal meant for this process.
            self.process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise UserError(f"{words[0]}: {error.strerror} in the job's environment") from None
        self.said: deque[str] = deque(maxlen=50)
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            text = line.decode(errors="replace")
            if OWN.match(text):
                self.said.append(text.strip())
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except OSError:
                continue  # the log's storage may be away

    def wait(self, seconds: float) -> bool:
        """Whether srun ended within `seconds`."""
        if self.process.poll() is not None:
            return True
        descriptor = os.pidfd_open(self.process.pid)
        try:
            select.select([descriptor], [], [], seconds)
        finally:
            os.close(descriptor)
        return self.process.poll() is not None

    def kill(self, job: str) -> None:
        """End the running step, then srun itself if it is still waiting."""
        signal_steps(job, "KILL")
        if not self.wait(END_SECONDS):
            self.process.kill()
            self.process.wait()

    def refusal(self) -> Refusal | None:
        """Why this finished srun started nothing; None if it started its tasks."""
        self.listener.join(END_SECONDS)
        return why_not_started(self.process.wait(), list(self.said))

    def heard(self) -> set[str]:
        """Nodes whose tasks srun saw end, which shows that the nodes are alive."""
        self.listener.join(END_SECONDS)
        return {match["node"] for line in self.said if (match := ENDED.search(line))}

    def last_words(self) -> str:
        self.listener.join(END_SECONDS)
        return refusal("\n".join(self.said)) if self.said else f"srun ended with exit code {self.process.returncode}"


def why_not_started(code: int, said: Sequence[str]) -> Refusal | None:
    """Interpret srun's exit code and output for a step whose tasks left no trace."""
    nodes = tuple(dict.fromkeys(match["node"] for line in said if (match := ON_NODE.search(line))))
    if code == 0 or (any(BEGAN.search(line) for line in said) and not nodes):
        return None
    told = "\n".join(line.removeprefix("srun: ") for line in said)
    words = f"srun: {refusal(told)}" if told else f"srun ended with exit code {code} before any rank began"
    if nodes:
        return Refusal(words, nodes=nodes)
    if any(map(CANNOT.search, said)):
        container = "; pyxis is not installed on this cluster" if "--container-" in words else ""
        return Refusal(f"{words}{container}", final=True)
    return Refusal(words, passes=any(map(PASSING.search, said)))


def signal_steps(job: str, name: str) -> str | None:
    """Send a signal to the ranks of every step of the job. Returns Slurm's complaint, if any."""
    try:
        for line in command(["squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i %j"]).splitlines():
            step, _, named = line.strip().partition(" ")
            if step.rpartition(".")[2].isdecimal() and named != KEEPERS:  # not `batch` or `extern`
                command(["scancel", f"--signal={name}", step])
    except UserError as error:
        return str(error)
    return None

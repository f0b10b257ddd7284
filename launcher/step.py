"""One srun of a job: its end, what it says, and whether what kept it from starting passes by itself.

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
"""Time for the ranks to write their stacks after a hang, and for srun to end after its ranks."""

CANNOT = re.compile(
    r"unrecognized option|invalid option|requires an argument|doesn't allow an argument|ambiguous|fatal: "
    r"|[Ii]nvalid .*specification|[Ii]nvalid (option|argument|generic resource|feature|numeric value)"
    r"|mutually exclusive|than permitted|Memory required by task|not supported|Only allocated"
    r"|Invalid MPI type|find the specified plugin"
)
"""What srun says of options that this allocation, or any, does not bear: it would say so again."""
OWN = re.compile(r"srun: (?!Warning: )|(\d+: )?slurmstepd[\w.-]*: error: ")
"""A line of Slurm's own among those of the tasks."""
BEGAN = re.compile(r"error: \S+: tasks? [\d,\- ]+: |tasks? [\d,\- ]+ (launch|start)")
"""srun's word for tasks that ended: they had been started."""
ENDED = re.compile(r"error: (?P<node>[\w.-]+): tasks? [\d,\- ]+: ")
ON_NODE = re.compile(r"(?:launch .*failed on node|Node failure on) (?P<node>[\w.-]+)")


KEEPERS = "keepers"
"""Name of the step that has no ranks; see `launcher.keepers`."""


class Refusal(NamedTuple):
    """Why srun started nothing."""

    words: str
    passes: bool = False
    """It may go when tried again."""
    final: bool = False
    """It would be said again."""
    nodes: tuple[str, ...] = ()
    """The nodes that it speaks against by name."""


class Step:
    """A running srun in `environment`; its words go on to the job's log. Raises UserError when there is no srun."""

    def __init__(self, words: Sequence[str], environment: dict[str, str]) -> None:
        try:
            # In a session of its own: srun ends its ranks at once when a signal meant for this process reaches it.
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
                continue  # the log lies on the storage that may be away

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
        """Ends the running step, then srun itself if it still waits for somebody."""
        signal_steps(job, "KILL")
        if not self.wait(END_SECONDS):
            self.process.kill()
            self.process.wait()

    def refusal(self) -> Refusal | None:
        """Why this srun, which has ended, started nothing; None if it started its tasks."""
        self.listener.join(END_SECONDS)
        return why_not_started(self.process.wait(), list(self.said))

    def heard(self) -> set[str]:
        """Nodes whose tasks srun saw end: those nodes live."""
        self.listener.join(END_SECONDS)
        return {match["node"] for line in self.said if (match := ENDED.search(line))}

    def last_words(self) -> str:
        self.listener.join(END_SECONDS)
        return refusal("\n".join(self.said)) if self.said else f"srun ended with exit code {self.process.returncode}"


def why_not_started(code: int, said: Sequence[str]) -> Refusal | None:
    """What the exit code of srun and its own lines say about a step without a trace of its tasks."""
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
    """Sends a signal to the ranks of every step of the job; returns what Slurm complained about."""
    try:
        for line in command(["squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i %j"]).splitlines():
            step, _, named = line.strip().partition(" ")
            if step.rpartition(".")[2].isdecimal() and named != KEEPERS:  # not `batch` or `extern`
                command(["scancel", f"--signal={name}", step])
    except UserError as error:
        return str(error)
    return None

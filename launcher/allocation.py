"""The nodes allocated to this job, and the `srun`s that run on them one at a time.

Standard library only.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from launcher.again import PATIENCE_SECONDS, RETRY_SECONDS, lost_nodes, requeued, shown
from launcher.environment import for_ranks
from launcher.outcome import Outcome
from launcher.record import Json
from launcher.say import say
from launcher.step import Step
from onediff.errors import UserError
from onediff.ranks import expand_nodes

SRUN = ["srun", "--export=ALL"]
"""Set explicitly, because srun in a job submitted with `--export=NONE` would drop the profile's variables too."""
IGNORANT = ["sh", "-c", 'trap "" TERM USR1; exec "$@"', "sh"]
"""Wraps a task: a signal that arrives before its first line of Python must not end it."""


class Allocation:
    """The job, seen from inside. It handles the signals that Slurm sends to the batch script."""

    def __init__(self, plan: Json) -> None:
        self.plan = plan
        self.job = os.environ["SLURM_JOB_ID"]
        self.nodes = expand_nodes(os.environ["SLURM_JOB_NODELIST"])
        self.srun: Step | None = None
        self.warned = False
        """Slurm has warned that the job is about to end."""
        self.ending = threading.Event()
        """Slurm has told this process to end."""
        # slurmd signals the batch script as well as the ranks; this process has to stay and see how they end.
        signal.signal(signal.SIGTERM, self._on_end)
        signal.signal(signal.SIGUSR1, self._on_warning)

    def run(
        self, words: Sequence[str], follow: Callable[[], bool], begun: Callable[[], bool], job_name: str
    ) -> Outcome | None:
        """Start srun with `words` and follow it; retry while it fails to start for a temporary reason.

        `follow` returns whether srun has ended; otherwise it is killed. `begun` tells whether its tasks left a trace.
        Returns None if they began, else the outcome.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.srun = Step([*SRUN, f"--job-name={job_name}", *words], for_ranks(self.plan["environment"]))
            if not follow():
                self.srun.kill(self.job)
            refusal = None if begun() else self.srun.refusal()
            if self.ending.is_set() and not begun():
                return self.ended_by_slurm(Outcome("interrupted", "ended before the ranks began"))
            if refusal is None:
                return None
            if not refusal.passes or time.monotonic() > deadline:
                return Outcome("refused" if refusal.final else "crash", refusal.words, blamed=refusal.nodes)
            say(f"{refusal.words}; retrying")
            self.ending.wait(RETRY_SECONDS)

    def wait(self, seconds: float) -> bool:
        """Whether srun ended within `seconds`."""
        assert self.srun is not None
        return self.srun.wait(seconds)

    def shown(self) -> dict[str, str]:
        """This job's fields, or an empty dict if the controller does not answer."""
        try:
            return shown(self.job)
        except UserError as error:
            say(str(error))
            return {}

    def still_ours(self) -> list[str]:
        """The nodes this job can continue on: none if it is about to end, all of them while the controller is away."""
        if self.ending.is_set() or self.warned:
            return []
        fields = self.shown()
        if not fields:
            return self.nodes
        if fields.get("JobState") != "RUNNING" or requeued(fields):
            return []
        left = expand_nodes(fields["NodeList"])
        lost = lost_nodes(left)
        self.nodes = [node for node in self.nodes if node in left and node not in lost]
        return self.nodes

    def ended_by_slurm(self, outcome: Outcome) -> Outcome:
        """Reinterpret an outcome if Slurm told this process to end too."""
        if outcome.cause == "crash" and "node failure" in outcome.reason:
            return outcome
        fields = self.shown()
        at_its_limit = fields.get("Reason") == "TimeLimit"  # and the ranks received no warning
        if requeued(fields) or at_its_limit:
            if outcome.cause == "stopped":
                return outcome
            how = "at its time limit" if at_its_limit else "preempted, or requeued with scontrol,"
            why = f"{how} before a checkpoint was written"
            return Outcome("interrupted", f"{why}; {outcome.reason}", outcome.exit_code)
        if fields.get("JobState") in ("COMPLETING", "CANCELLED"):
            return Outcome("cancelled", f"ended by Slurm or by scancel; {outcome.reason}", outcome.exit_code)
        return outcome

    def _on_end(self, number: int, frame: object) -> None:
        self.ending.set()

    def _on_warning(self, number: int, frame: object) -> None:
        self.warned = True
        self.ask_to_stop()

    def ask_to_stop(self) -> None:
        """Ask the ranks to stop at a checkpoint."""
        if self.srun is not None and self.srun.process.poll() is None:
            self.srun.process.send_signal(signal.SIGUSR1)

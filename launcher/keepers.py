"""The supervisor's side of the keepers: they run in their own job step, beside that of the ranks.

If keepers fail, a run loses only the in-memory copies of its state; checkpoints on disk remain authoritative.
Standard library only.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import frozen
from launcher.allocation import IGNORANT, SRUN
from launcher.environment import for_ranks
from launcher.record import Json
from launcher.say import say
from launcher.step import KEEPERS

READY_SECONDS = 20.0
"""Seconds that the ranks' start waits for the keepers of their nodes."""
END_SECONDS = 10.0


class Keepers:
    """Starts a keeper on every node of the job and tells them the nodes of each attempt."""

    def __init__(self, job: str, plan: Json, run: Path, nodes: Sequence[str]) -> None:
        self.folder = Path("/dev/shm") / f"onediff-{job}"
        self.token = secrets.token_hex(16)
        self.known: dict[str, Json] = {}
        """What each node's keeper announced about itself."""
        self.heard = threading.Condition()
        options = [f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1", "--overlap", "--no-kill"]
        options += [f"--nodelist={','.join(nodes)}", f"--job-name={KEEPERS}", "--kill-on-bad-exit=0", "--wait=0"]
        words = [plan["supervisor_python"], *frozen.module(run, "launcher.keeper"), str(self.folder)]
        words += [plan["interface"]] if plan.get("interface") else []
        self.process = subprocess.Popen(
            [*SRUN, *options, *plan["srun"], *IGNORANT, *words],
            env=for_ranks(plan["environment"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                told = json.loads(line)
                with self.heard:
                    if "node" in told:
                        self.known[told["node"]] = told
                    self.heard.notify_all()
            except (ValueError, KeyError, TypeError):
                continue  # not from a keeper

    def link(self, nodes: Sequence[str]) -> bool:
        """Tell every keeper that the next attempt runs on `nodes`. Returns whether each of them has a keeper."""
        deadline = time.monotonic() + READY_SECONDS
        with self.heard:
            while not {*nodes} <= {*self.known} and self.process.poll() is None and time.monotonic() < deadline:
                self.heard.wait(1.0)
            known = dict(self.known)
        missing = [node for node in nodes if node not in known]
        addresses = {node: (node, told["host"], told["port"]) for node, told in known.items()}
        ring = [addresses[node] for node in nodes if node in addresses]
        told = {"token": self.token, "ring": ring, "all": list(addresses.values())}
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(told).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            missing = list(nodes)
        if missing:
            say(f"no copies in memory in this attempt: no keeper on {', '.join(missing)}")
        return not missing

    @property
    def alive(self) -> bool:
        """Whether their job step is still running."""
        return self.process.poll() is None

    def words(self) -> list[str]:
        """Arguments of `onediff train` that name the keepers' folder."""
        return ["--peer-copies", str(self.folder)]

    def end(self) -> None:
        """Stop all keepers, which deletes the copies."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, 15)

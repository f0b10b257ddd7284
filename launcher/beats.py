"""Heartbeats: one task per node sends them to the supervisor, so a dead node is noticed within seconds.

Slurm itself waits for `SlurmdTimeout`, five minutes at most sites. UDP puts no load on the shared file system, and a lost
datagram does no harm: before a silent node is declared dead, its host is probed.

Standard library only.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

BEAT_SECONDS = 3.0
"""Seconds between heartbeats of a node."""
SILENT_SECONDS = 12.0
"""Seconds of silence after which a host is probed."""
ANSWER_SECONDS = 2.0
"""Seconds to wait for a probe's answer; `ASKED` probes are sent."""
ASKED = 3
END = b"end"
"""The reply to a task whose attempt is over."""


class Beats:
    """The receiving side, in the supervisor. A thread listens until the process ends."""

    def __init__(self, host: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", 0))
        self.address = f"{host}:{self.socket.getsockname()[1]}"
        self.heard: dict[tuple[str, str], float] = {}
        """When each (attempt, node) was last heard from."""
        self.over: set[str] = set()
        """Attempts whose tasks must end; they may still run on nodes that Slurm lost."""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            said, sender = self.socket.recvfrom(512)
            attempt, _, node = said.decode(errors="replace").partition(" ")
            self.heard[attempt, node] = time.monotonic()
            if attempt in self.over:
                self.socket.sendto(END, sender)

    def since(self, attempt: str, node: str) -> float | None:
        """Seconds since `node` was last heard from in `attempt`, or None if it never was."""
        last = self.heard.get((attempt, node))
        return None if last is None else time.monotonic() - last

    def silent(self, attempt: str, nodes: Sequence[str]) -> list[str]:
        """The `nodes` that have gone silent, unless all have."""
        since = {node: gap for node in nodes if (gap := self.since(attempt, node)) is not None}
        if not any(gap < SILENT_SECONDS / 2 for gap in since.values()):
            return []  # all nodes are silent, so the fault is more likely on this side
        return [node for node, gap in since.items() if gap > SILENT_SECONDS]


class Sender:
    """The sending side, in a task. Sends nothing if the supervisor's address cannot be resolved."""

    def __init__(self, address: str, attempt: str, node: str) -> None:
        """`address` is `HOST:PORT`, or `-` to send nothing."""
        self.word = f"{attempt} {node}".encode()
        self.socket: socket.socket | None = None
        host, _, port = address.rpartition(":")
        if port.isdecimal():
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.setblocking(False)
            try:
                self.socket.connect((host, int(port)))
            except OSError:
                self.socket = None

    def beat(self) -> bool:
        """Send a heartbeat. Returns whether the supervisor has replied that this attempt is over."""
        if self.socket is None:
            return False
        try:
            self.socket.send(self.word)
            return self.socket.recv(16) == END
        except OSError:
            return False  # no reply yet, or the supervisor is gone


def answers(host: str, port: int) -> bool:
    """Whether `host` reacts to a connection attempt, even by refusing it; a machine that is down or cut off does not."""
    for _ in range(ASKED):
        try:
            socket.create_connection((host, port), ANSWER_SECONDS).close()
            return True
        except ConnectionError:
            return True
        except socket.gaierror:
            return True  # an unresolvable name says nothing about the host
        except OSError:
            continue
    return False

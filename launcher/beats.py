"""Signs of life: one task of every node sends one to the supervisor, so that a dead node is missed within seconds.

Slurm itself waits for `SlurmdTimeout`, five minutes at most sites. UDP costs the shared file system nothing, and a lost
datagram nothing either: silence alone condemns no node, it is only the occasion to look whether its host still answers.

Standard library only.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

BEAT_SECONDS = 3.0
"""Pause between two signs of life of a node."""
SILENT_SECONDS = 12.0
"""Silence after which a host is asked whether it is still there."""
ANSWER_SECONDS = 2.0
"""Longest wait for that answer; it is asked for `ASKED` times."""
ASKED = 3
END = b"end"
"""What a task hears whose attempt is over."""


class Beats:
    """The supervisor's end. A thread listens until the process ends."""

    def __init__(self, host: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", 0))
        self.address = f"{host}:{self.socket.getsockname()[1]}"
        self.heard: dict[tuple[str, str], float] = {}
        """When each (attempt, node) was heard last."""
        self.over: set[str] = set()
        """Attempts whose tasks must end: they may live on where Slurm lost their node."""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            said, sender = self.socket.recvfrom(512)
            attempt, _, node = said.decode(errors="replace").partition(" ")
            self.heard[attempt, node] = time.monotonic()
            if attempt in self.over:
                self.socket.sendto(END, sender)

    def since(self, attempt: str, node: str) -> float | None:
        """Seconds since `node` was heard last in `attempt`; None if it never was."""
        last = self.heard.get((attempt, node))
        return None if last is None else time.monotonic() - last

    def silent(self, attempt: str, nodes: Sequence[str]) -> list[str]:
        """Those of `nodes` that were heard once and are no longer, while another still is."""
        since = {node: gap for node in nodes if (gap := self.since(attempt, node)) is not None}
        if not any(gap < SILENT_SECONDS / 2 for gap in since.values()):
            return []  # nobody is heard: the fault is nearer to us than to any of them
        return [node for node, gap in since.items() if gap > SILENT_SECONDS]


class Sender:
    """A task's end. Sends nothing if the supervisor's address cannot be found."""

    def __init__(self, address: str, attempt: str, node: str) -> None:
        """`address` is `HOST:PORT`, or `-` for nobody."""
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
        """Sends one sign of life; whether the supervisor has answered that this attempt is over."""
        if self.socket is None:
            return False
        try:
            self.socket.send(self.word)
            return self.socket.recv(16) == END
        except OSError:
            return False  # nothing to hear yet, or nobody listens any more


def answers(host: str, port: int) -> bool:
    """Whether `host` reacts to a connection, be it with a refusal: a machine that is down or cut off does not."""
    for _ in range(ASKED):
        try:
            socket.create_connection((host, port), ANSWER_SECONDS).close()
            return True
        except ConnectionError:
            return True
        except socket.gaierror:
            return True  # its name says nothing about it
        except OSError:
            continue
    return False

"""Keeps a run's state in memory, for this node and the previous one: one process per node, for as long as the job lives.

    python -m launcher.keeper FOLDER [INTERFACE]

Ranks write their copies into FOLDER, in /dev/shm, and request them through its socket (`onediff.runs.copies`); keepers
exchange files over TCP. Prints `{"node", "host", "port"}`, then reads lines of JSON: `token`, which every message between
keepers carries; `ring`, the hosts and ports of the attempt's nodes in order; and `all`, those of every node in the job.
Answers each with `{"linked": [node, …]}`. FOLDER is removed when standard input ends or at SIGTERM; leftovers of a killed
keeper are removed by the next one. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import io
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import struct
import sys
import threading
from pathlib import Path
from typing import Any

from launcher.record import Json
from launcher.task import node_name
from onediff.runs.copies import KEEPER, keep_only

PLAIN = re.compile(r"\w[\w.-]*")
CONNECT_SECONDS, MESSAGE_SECONDS = 10.0, 120.0
PIECE = 1 << 20
SIOCGIFADDR = 0x8915
"""ioctl that returns the address of an interface (netdevice(7))."""

Address = tuple[str, int]


class Keeper:
    """The files of one node, and the connection to the other nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.node = folder, node_name()
        self.token = ""
        self.following: Address | None = None
        """The keeper that receives a copy of what this node's ranks write; None on a single node."""
        self.others: list[Address] = []

    def link(self, told: Json) -> None:
        """Adopt the nodes of an attempt."""
        self.token = told["token"]
        names = [node for node, _, _ in told["ring"]]
        self.others = [(host, port) for node, host, port in told["all"] if node != self.node]
        self.following = None
        if self.node in names and len(names) > 1:
            _, host, port = told["ring"][(names.index(self.node) + 1) % len(names)]
            self.following = (host, port)

    def path(self, generation: str, name: str) -> Path:
        """Path of a file. Raises ValueError for a name that leads outside the folder."""
        if not PLAIN.fullmatch(generation) or not PLAIN.fullmatch(name):
            raise ValueError(f"{generation}/{name}: not the name of a copy")
        return self.folder / generation / name

    def from_rank(self, asked: Json) -> Json:
        """Answer a rank of this node."""
        if asked["do"] == "fetch":
            path = self.path(asked["generation"], asked["name"])
            return {"found": any(self.get(other, path) for other in self.others)}
        try:
            for name in asked["names"] if self.following else ():
                self.put(self.path(asked["generation"], name), asked["keep"])
        except (OSError, ValueError) as error:
            return {"error": f"cannot be copied to another node: {error}"}
        return {}

    def put(self, path: Path, keep: list[str]) -> None:
        """Send a file to the next node."""
        assert self.following is not None
        size = path.stat().st_size
        place = {"generation": path.parent.name, "name": path.name}
        with connected(self.following) as other, path.open("rb") as file, other.makefile("rb") as answers:
            send(other, {"do": "put", "token": self.token, "size": size, "keep": keep, **place})
            other.sendfile(file, count=size)
            told = received(answers)
        if told.get("error") or not told:
            raise OSError(told.get("error") or "no answer")

    def get(self, other: Address, path: Path) -> bool:
        """Fetch a file from `other`. Returns whether it had the file."""
        place = {"generation": path.parent.name, "name": path.name}
        try:
            with connected(other) as line, line.makefile("rb") as answers:
                send(line, {"do": "get", "token": self.token, **place})
                size = received(answers).get("size")
                if size is not None:
                    self.take(answers, path, size)
                return size is not None
        except OSError:
            return False

    def from_keeper(self, asked: Json, line: socket.socket, stream: io.BufferedIOBase) -> Json | None:
        """Answer the keeper of another node. Returns None if the answer has already been sent."""
        path = self.path(asked["generation"], asked["name"])
        if asked["do"] == "put":
            keep_only(self.folder, [*asked["keep"], path.parent.name])
            self.take(stream, path, asked["size"])
            return {"taken": True}
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                send(line, {"size": size})
                line.sendfile(file, count=size)
        except FileNotFoundError:
            return {"size": None}
        return None

    def take(self, stream: io.BufferedIOBase, path: Path, size: int) -> None:
        """Write a file from `stream`, and give it its name once it is complete."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        aside = path.with_name(f".tmp-{path.name}-{threading.get_ident()}")
        with aside.open("wb") as file:
            while size:
                piece = stream.read(min(PIECE, size))
                if not piece:
                    raise OSError("truncated in transit")
                file.write(piece)
                size -= len(piece)
        os.replace(aside, path)


def serve(keeper: Keeper) -> Address:
    """Start the threads that answer this node's ranks and other keepers. Returns the address for the latter."""

    class FromRank(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            answer(self.request, keeper.from_rank(received(self.rfile)))

    class FromKeeper(socketserver.StreamRequestHandler):
        timeout = MESSAGE_SECONDS

        def handle(self) -> None:
            asked = received(self.rfile)
            if not keeper.token or not hmac.compare_digest(str(asked.get("token")).encode(), keeper.token.encode()):
                return
            try:
                told = keeper.from_keeper(asked, self.request, self.rfile)
            except (OSError, ValueError) as error:
                told = {"error": f"{keeper.node}: {error}"}
            if told is not None:
                answer(self.request, told)

    ranks = socketserver.ThreadingUnixStreamServer(str(keeper.folder / KEEPER), FromRank)
    keepers = socketserver.ThreadingTCPServer(("", 0), FromKeeper)
    for server in (ranks, keepers):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return str(keepers.server_address[0]), int(keepers.server_address[1])


def connected(address: Address) -> socket.socket:
    line = socket.create_connection(address, CONNECT_SECONDS)
    line.settimeout(MESSAGE_SECONDS)
    return line


def send(line: socket.socket, value: Json) -> None:
    line.sendall(json.dumps(value).encode() + b"\n")


def answer(line: socket.socket, value: Json) -> None:
    """Send to a peer that may have stopped waiting."""
    with contextlib.suppress(ConnectionError):
        send(line, value)


def received(stream: io.BufferedIOBase) -> Json:
    """The next message; empty if there is none or the line is not a message."""
    try:
        found: Any = json.loads(stream.readline())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def own_folder(folder: Path) -> int:
    """Recreate `folder`, lock it and return the lock's descriptor; remove the leftovers of dead keepers next to it."""
    for other in folder.parent.glob("onediff-*"):
        remove_if_dead(other)
    aside = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    aside.mkdir(mode=0o700)
    lock = os.open(aside / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(aside, folder)
    return lock


def remove_if_dead(folder: Path) -> None:
    """Remove a folder whose keeper is dead; folders of other users are left alone."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(lock)


def address_of(interface: str) -> str:
    """IPv4 address of a network interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
    return socket.inet_ntoa(found[20:24])


def main(folder: Path, interface: str = "") -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    keeper, _lock = Keeper(folder), own_folder(folder)
    try:
        _, port = serve(keeper)
        try:
            host = address_of(interface) if interface else keeper.node
        except OSError:
            host = keeper.node
        print(json.dumps({"node": keeper.node, "host": host, "port": port}), flush=True)
        for line in sys.stdin:
            told = json.loads(line)
            keeper.link(told)
            print(json.dumps({"linked": [node for node, _, _ in told["ring"]]}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

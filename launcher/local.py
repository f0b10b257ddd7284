"""Ranks of one command on this machine: one process each, one log each, and none left behind."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from launcher.record import last_lines
from onediff.errors import EXIT_STOPPED, UserError

GRACE_SECONDS = 30.0
"""How long the other ranks may take to end by themselves once one has failed, before they are killed."""

SAME_CTRL_C_SECONDS = 1.0
"""A terminal, make and a shell may each pass on one Ctrl-C: within this time it counts once."""

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Node:
    """One machine among `count` that run equally many ranks each."""

    index: int = 0
    count: int = 1
    meet: str | None = None
    """`HOST:PORT` of the first machine, where the ranks meet."""

    @classmethod
    def of(cls, place: str | None, meet: str | None) -> Node:
        """The node of `--node INDEX/COUNT --meet HOST:PORT`. Raises UserError for half of it, or what reads otherwise."""
        if place is None and meet is None:
            return ALONE
        match = re.fullmatch(r"(\d+)/(\d+)", place or "")
        if match is None or not int(match[1]) < int(match[2]):
            raise UserError(f"--node {place or ''}: expected INDEX/COUNT, such as 0/4 for the first of four machines")
        if not re.fullmatch(r"[^\s:]+:\d+|\[[^\s\]]+\]:\d+", meet or ""):
            raise UserError(f"--meet {meet or ''}: expected HOST:PORT of the first machine")
        return cls(int(match[1]), int(match[2]), meet)


ALONE = Node()


def run_local(
    argv: Sequence[str],
    processes: int,
    *,
    log_dir: Path,
    name: str = "local",
    env: Mapping[str, str] | None = None,
    grace: float = GRACE_SECONDS,
    node: Node = ALONE,
) -> int:
    """Runs `processes` ranks of the command `argv` here, those of one `node` among others, and waits for them.

    Every rank gets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT on top of `env` (this
    process's own by default), and writes `log_dir/<name>.rank<r>.log`; rank 0 writes to the terminal too. SIGTERM, SIGINT
    and SIGUSR1 are passed on to every rank; a second SIGINT, a second later, ends them. When a rank fails, the others get
    SIGTERM and, after `grace` seconds, SIGKILL.

    Returns 0, or the exit code of the rank that failed first (128 + signal number for one that a signal ended). Must be
    called from the main thread. Raises UserError when the command cannot be started.
    """
    if processes < 1:
        raise UserError(f"--processes {processes}: must be at least 1")
    log_dir.mkdir(parents=True, exist_ok=True)
    started = LocalRanks(log_dir, name, grace)
    try:
        started.start(list(argv), rank_variables(processes, os.environ if env is None else env, node))
        return started.wait()
    finally:
        started.close()


def rank_variables(processes: int, env: Mapping[str, str], node: Node = ALONE) -> list[dict[str, str]]:
    """The environment of each of this node's `processes` ranks, which meet at `node.meet`, or on a free port here."""
    host, _, port = (node.meet or f"127.0.0.1:{free_port()}").rpartition(":")
    shared = {
        **env,
        "WORLD_SIZE": str(processes * node.count),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes))),
        "PYTHONUNBUFFERED": "1",
    }
    first = processes * node.index
    return [{**shared, "RANK": str(first + rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def free_port() -> int:
    """A TCP port that nothing on this machine listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LocalRanks:
    """The processes of one `run_local`, and the one loop that waits for their ends, their output and our signals."""

    def __init__(self, log_dir: Path, name: str, grace: float) -> None:
        self.log_dir, self.name, self.grace = log_dir, name, grace
        self.processes: list[subprocess.Popen[bytes]] = []
        self.running: set[int] = set()
        self.failed: tuple[int, int] | None = None  # the rank that failed first, and its exit code
        self.deadline: float | None = None
        self.interrupted: float | None = None  # when Ctrl-C came first
        self.events = selectors.DefaultSelector()
        self.wake, self.woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.events.register(self.wake, selectors.EVENT_READ, (self.on_signal,))
        self.wakeup_before = signal.set_wakeup_fd(self.woken, warn_on_full_buffer=False)
        # A handler of Python's own must exist for the wake-up pipe to hear of the signal.
        self.handlers_before = {number: signal.signal(number, lambda *_: None) for number in FORWARDED}

    def start(self, argv: list[str], environments: list[dict[str, str]]) -> None:
        """One process a rank, each the leader of its own process group and bound to die with this one."""
        for rank, environment in enumerate(environments):
            with self.log_path(rank).open("wb") as log:
                outputs = self.tee(self.log_path(rank)) if rank == 0 else (log.fileno(), log.fileno())
                try:
                    process = subprocess.Popen(
                        argv,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=outputs[0],
                        stderr=outputs[1],
                        preexec_fn=partial(die_with, os.getpid()),
                    )
                except OSError as error:
                    raise UserError(f"{argv[0]}: cannot be started: {error.strerror}") from None
                finally:
                    if rank == 0:
                        for descriptor in set(outputs):
                            os.close(descriptor)
            self.processes.append(process)
            self.running.add(rank)
            self.events.register(os.pidfd_open(process.pid), selectors.EVENT_READ, (self.on_end, rank))

    def tee(self, path: Path) -> tuple[int, int]:
        """Descriptors for rank 0's stdout and stderr that reach both our own and its log.

        In a terminal both are one pseudo-terminal, so that a progress bar sees a terminal of the right width.
        """
        log = path.open("wb")
        if sys.stderr.isatty():
            reader, writer = os.openpty()
            width = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(writer, termios.TIOCSWINSZ, width)
            self.events.register(reader, selectors.EVENT_READ, (self.on_output, 2, LastWritten(log)))
            return writer, writer
        ends = []
        plain = LastWritten(log)
        for target in (1, 2):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            self.events.register(reader, selectors.EVENT_READ, (self.on_output, target, plain))
            ends.append(writer)
        return ends[0], ends[1]

    def wait(self) -> int:
        """Handles events until every rank has ended; the exit code of the whole."""
        while self.running:
            left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            for key, _ in self.events.select(left):
                self.handle(key)
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.on_deadline()
        while ready := self.events.select(0):  # what rank 0 wrote last is still in the pipe
            for key, _ in ready:
                self.handle(key)
        if self.failed is None:
            return 0
        rank, code = self.failed
        if code != EXIT_STOPPED:
            self.report(rank, code)
        return code

    def handle(self, key: selectors.SelectorKey) -> None:
        action, *arguments = key.data
        action(key.fd, *arguments)

    def on_signal(self, descriptor: int) -> None:
        """Passes what arrived here on to the ranks; their data workers are theirs to tell."""
        for number in os.read(descriptor, 64):
            if number == signal.SIGINT:
                if self.interrupted is not None and time.monotonic() - self.interrupted > SAME_CTRL_C_SECONDS:
                    self.end_others()
                self.interrupted = self.interrupted or time.monotonic()
            self.send(number)

    def on_output(self, descriptor: int, target: int, log: LastWritten) -> None:
        try:
            written = os.read(descriptor, 65536)
        except OSError:  # a pseudo-terminal whose other side is closed
            written = b""
        if not written:
            self.forget(descriptor)
            log.close()
            return
        log.write(written)
        while written:
            try:
                written = written[os.write(target, written) :]
            except OSError:  # our reader went away; the run and its log go on
                break

    def on_end(self, descriptor: int, rank: int) -> None:
        self.forget(descriptor)
        self.running.discard(rank)
        code = self.processes[rank].wait()
        code = code if code >= 0 else 128 - code
        if code and self.failed is None:
            self.failed = (rank, code)
            if code == EXIT_STOPPED:  # every rank stops by itself, after its part of the checkpoint
                self.deadline = time.monotonic() + self.grace
            else:
                self.end_others()

    def end_others(self) -> None:
        self.deadline = time.monotonic() + self.grace
        self.send(signal.SIGTERM)

    def on_deadline(self) -> None:
        """The bounded wait is over: whatever still runs is killed, with everything it has started."""
        self.deadline = None
        for rank in self.running:
            os.killpg(self.processes[rank].pid, signal.SIGKILL)

    def send(self, number: int) -> None:
        for rank in self.running:
            self.processes[rank].send_signal(number)

    def report(self, rank: int, code: int) -> None:
        how = f"was ended by {signal.Signals(code - 128).name}" if code > 128 else f"ended with exit code {code}"
        text = [f"onediff: rank {rank} {how}; its log: {self.log_path(rank)}"]
        if rank != 0:  # rank 0's lines have been seen already
            text += [f"  {line}" for line in last_lines(self.log_path(rank), 5)]
        print("\n".join(text), file=sys.stderr, flush=True)

    def log_path(self, rank: int) -> Path:
        return self.log_dir / f"{self.name}.rank{rank}.log"

    def forget(self, descriptor: int) -> None:
        self.events.unregister(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """Kills what still runs (only after an error of our own) and puts the signals back as they were."""
        self.on_deadline()
        for rank in self.running:
            self.processes[rank].wait()
        for process in self.processes:
            end_group(process.pid)
        signal.set_wakeup_fd(self.wakeup_before)
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)
        for key in list(self.events.get_map().values()):
            self.forget(key.fd)
        self.events.close()
        os.close(self.woken)


class LastWritten:
    """A log file that keeps of every line only what was written last: redrawn progress bars become one line each."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.line = b""

    def write(self, written: bytes) -> None:
        *whole, self.line = (self.line + written).replace(b"\r\n", b"\n").split(b"\n")
        for line in whole:
            self.file.write(line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n")
        # A bar that never ends its line must not grow in memory; the last drawing may be cut in two, so keep both.
        self.line = b"\r".join(self.line.split(b"\r")[-2:])
        self.file.flush()

    def close(self) -> None:
        if self.line:
            self.file.write(self.line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n")
            self.line = b""
        self.file.flush()


def die_with(parent: int) -> None:
    """In the child: a process group of its own, and SIGKILL when `parent` dies."""
    os.setpgid(0, 0)
    end_with(parent)


def end_with(parent: int) -> None:
    """In the child: SIGKILL when `parent` dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_group(leader: int) -> None:
    """Kills what a rank that has ended left in its process group, such as data workers."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return

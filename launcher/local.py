"""Run the ranks of one command on this machine: one process and one log per rank, without leaving processes behind."""

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
"""Seconds that the other ranks get to exit after one has failed, before they are killed."""

SAME_CTRL_C_SECONDS = 1.0
"""A terminal, make and a shell may each forward the same Ctrl-C; within this time it counts once."""

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Node:
    """One of `count` machines that run the same number of ranks each."""

    index: int = 0
    count: int = 1
    meet: str | None = None
    """`HOST:PORT` of the first machine, used for rendezvous."""

    @classmethod
    def of(cls, place: str | None, meet: str | None) -> Node:
        """Parse `--node INDEX/COUNT --meet HOST:PORT`. Raises UserError if one is missing or malformed."""
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
    """Run `processes` ranks of the command `argv` here, as one `node` among others, and wait for them.

    Each rank gets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in addition to `env` (default:
    the environment of this process), and appends to `log_dir/<name>.rank<r>.log`; rank 0 also writes to the terminal.
    SIGTERM, SIGINT and SIGUSR1 are forwarded to every rank; a second SIGINT at least a second later ends them. When a rank
    fails, the others get SIGTERM and, after `grace` seconds, SIGKILL.

    Returns 0, or the exit code of the rank that failed first (128 + signal number if a signal ended it). Must be called
    from the main thread. Raises UserError if the command cannot be started.
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
    """The environment of each of this node's `processes` ranks; they meet at `node.meet`, or on a free local port."""
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
    """A TCP port that is currently unused on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LocalRanks:
    """The processes of one `run_local`, and the event loop that handles their exits, their output and our signals."""

    def __init__(self, log_dir: Path, name: str, grace: float) -> None:
        self.log_dir, self.name, self.grace = log_dir, name, grace
        self.processes: list[subprocess.Popen[bytes]] = []
        self.running: set[int] = set()
        self.failed: tuple[int, int] | None = None  # the rank that failed first, and its exit code
        self.deadline: float | None = None
        self.interrupted: float | None = None  # time of the first Ctrl-C
        self.events = selectors.DefaultSelector()
        self.wake, self.woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.events.register(self.wake, selectors.EVENT_READ, (self.on_signal,))
        self.wakeup_before = signal.set_wakeup_fd(self.woken, warn_on_full_buffer=False)
        # The wake-up pipe only gets signals that have a Python handler.
        self.handlers_before = {number: signal.signal(number, lambda *_: None) for number in FORWARDED}

    def start(self, argv: list[str], environments: list[dict[str, str]]) -> None:
        """Start one process per rank, each leading its own process group and bound to die with this one."""
        for rank, environment in enumerate(environments):
            with appended(self.log_path(rank)) as log:
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
        """Descriptors for rank 0's stdout and stderr that lead both to ours and to its log.

        In a terminal both are one pseudo-terminal, so that a progress bar sees a terminal of the right width.
        """
        log = path.open("ab")
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
        """Handle events until every rank has ended. Returns the exit code of the whole."""
        while self.running:
            left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            for key, _ in self.events.select(left):
                self.handle(key)
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.on_deadline()
        while ready := self.events.select(0):  # rank 0's last output may still be in the pipe
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
        """Forward the received signals to the ranks, which notify their own data workers."""
        for number in os.read(descriptor, 64):
            if number == signal.SIGINT:
                if self.interrupted is not None and time.monotonic() - self.interrupted > SAME_CTRL_C_SECONDS:
                    self.end_others()
                self.interrupted = self.interrupted or time.monotonic()
            self.send(number)

    def on_output(self, descriptor: int, target: int, log: LastWritten) -> None:
        try:
            written = os.read(descriptor, 65536)
        except OSError:  # the other side of the pseudo-terminal is closed
            written = b""
        if not written:
            self.forget(descriptor)
            log.close()
            return
        log.write(written)
        while written:
            try:
                written = written[os.write(target, written) :]
            except OSError:  # our reader is gone; the run and its log continue
                break

    def on_end(self, descriptor: int, rank: int) -> None:
        self.forget(descriptor)
        self.running.discard(rank)
        code = exit_code(self.processes[rank])
        if code and self.failed is None:
            self.failed = (rank, code)
            if code == EXIT_STOPPED:  # every rank stops by itself, after writing its part of the checkpoint
                self.deadline = time.monotonic() + self.grace
            else:
                self.end_others()

    def end_others(self) -> None:
        self.deadline = time.monotonic() + self.grace
        self.send(signal.SIGTERM)

    def on_deadline(self) -> None:
        """The grace period is over: kill whatever still runs, including its child processes."""
        self.deadline = None
        for rank in self.running:
            os.killpg(self.processes[rank].pid, signal.SIGKILL)

    def send(self, number: int) -> None:
        for rank in self.running:
            self.processes[rank].send_signal(number)

    def report(self, rank: int, code: int) -> None:
        how = f"was ended by {signal.Signals(code - 128).name}" if code > 128 else f"ended with exit code {code}"
        text = [f"onediff: rank {rank} {how}; its log: {self.log_path(rank)}"]
        if rank != 0:  # rank 0's lines are already on the terminal
            text += [f"  {line}" for line in last_lines(self.log_path(rank), 5)]
        print("\n".join(text), file=sys.stderr, flush=True)

    def log_path(self, rank: int) -> Path:
        return self.log_dir / f"{self.name}.rank{rank}.log"

    def forget(self, descriptor: int) -> None:
        self.events.unregister(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """Kill what still runs (only after an error in this process) and restore the signal handlers."""
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


def appended(path: Path) -> BinaryIO:
    """Opens a log for more lines; what an earlier start wrote, such as why it failed, stays above a line with the time."""
    log = path.open("ab")
    if log.tell():
        log.write(f"\nonediff: started again at {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n".encode())
        log.flush()
    return log


class LastWritten:
    """A log file that keeps only the final state of each line, so that a redrawn progress bar becomes one line."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.line = b""

    def write(self, written: bytes) -> None:
        *whole, self.line = (self.line + written).replace(b"\r\n", b"\n").split(b"\n")
        for line in whole:
            self.file.write(line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n")
        # A bar that never ends its line must not grow in memory; the last drawing may arrive in two pieces, so keep both.
        self.line = b"\r".join(self.line.split(b"\r")[-2:])
        self.file.flush()

    def close(self) -> None:
        if self.line:
            self.file.write(self.line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n")
            self.line = b""
        self.file.flush()


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process. Returns its exit code as a shell gives it: 128 + N for signal N."""
    code = process.wait()
    return code if code >= 0 else 128 - code


def die_with(parent: int) -> None:
    """In the child: start a new process group, and get SIGKILL when `parent` dies."""
    os.setpgid(0, 0)
    end_with(parent)


def end_with(parent: int) -> None:
    """In the child: get SIGKILL when `parent` dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_group(leader: int) -> None:
    """Kill what a finished rank left in its process group, such as data workers."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return

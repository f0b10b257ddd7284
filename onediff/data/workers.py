"""The worker processes of a rank, which take tasks and return rows in the order of the tasks."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from onediff.data.rows import TokenRow
from onediff.data.sample import BadSample
from onediff.data.stream import Stream
from onediff.errors import UserError

PR_SET_PDEATHSIG = 1
TENSORS = ("token_ids", "is_target", "images")
"""The tensors of a row."""


class Task(NamedTuple):
    """Samples of a lane to make into rows, or only to measure."""

    lane: int
    indexes: tuple[int, ...]
    measure: bool = False


class Bad(NamedTuple):
    """A bad sample, in place of a row or length."""

    kind: str
    reason: str


Made = list[TokenRow | int | Bad] | str
"""The row or length of each sample, or the message of an error that stops the run."""


def work(stream: Stream, tasks: Iterable[Task], workers: int, prefetch: int) -> Iterator[tuple[Task, Made]]:
    """Yields each task with its result, in order. With 0 `workers`, the tasks run in this process.

    `prefetch` is the number of tasks per worker that are running or finished but not yet taken.
    """
    others = set(multiprocessing.active_children())
    results = iter(
        DataLoader(
            Work(stream),
            batch_size=None,
            sampler=tasks,
            num_workers=workers,
            collate_fn=_packed,
            worker_init_fn=_leave_signals_to_the_rank,
            prefetch_factor=prefetch if workers else None,
            generator=torch.Generator(),  # so that DataLoader's seed does not advance the generator of the dropout
        )
    )
    # An exception's frames can keep the workers alive even after this generator is closed.
    atexit.register(_kill, set(multiprocessing.active_children()) - others)
    yield from map(_unpacked, results)


class Work(Dataset[tuple[Task, Made]]):
    """Runs tasks in a worker."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, task: Task) -> tuple[Task, Made]:
        one = self.stream.tokens if task.measure else self.stream.one
        made: list[TokenRow | int | Bad] = []
        for index in task.indexes:
            try:
                made.append(one(task.lane, index))
            except BadSample as bad:
                made.append(Bad(bad.kind, bad.reason))
            except UserError as error:
                # An exception would reach the rank wrapped in a traceback.
                return task, str(error)
        return task, made


def _leave_signals_to_the_rank(worker: int) -> None:
    """Ignores signals: Ctrl-C, `timeout` and Slurm signal the whole process group, but workers must outlive the rank's
    last checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Workers must die with a killed rank; otherwise they would wait for it to read their results.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(workers: set[Any]) -> None:
    """Kills workers at the rank's exit, before multiprocessing's own handler sends SIGTERM, which they ignore, and waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for a worker that was killed
    for worker in workers:
        worker.kill()


def _packed(result: Any) -> Any:
    """A result as sent between processes: with arrays, because torch would open a shared file for each small tensor."""
    task, made = result
    return task, made if isinstance(made, str) else [_arrays(one) if isinstance(one, TokenRow) else one for one in made]


def _arrays(row: TokenRow) -> dict[str, Any]:
    return vars(row) | {name: getattr(row, name).numpy() for name in TENSORS}


def _unpacked(result: Any) -> tuple[Task, Made]:
    task, made = result
    return task, made if isinstance(made, str) else [_row(one) if isinstance(one, dict) else one for one in made]


def _row(fields: dict[str, Any]) -> TokenRow:
    return TokenRow(**(fields | {name: torch.from_numpy(fields[name]) for name in TENSORS}))

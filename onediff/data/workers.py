"""The worker processes of a rank: tasks go in, rows come out in the order of the tasks."""

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
    """Some samples of a lane, to be made into rows or only to be measured."""

    lane: int
    indexes: tuple[int, ...]
    measure: bool = False


class Bad(NamedTuple):
    """A bad sample, in place of what was asked for."""

    kind: str
    reason: str


Made = list[TokenRow | int | Bad] | str
"""The row of each sample, or its length; or one line about what stops the run."""


def work(stream: Stream, tasks: Iterable[Task], workers: int, prefetch: int) -> Iterator[tuple[Task, Made]]:
    """Each task with what came of it, in order, done by `workers` processes; none: in this process, one by one.

    `prefetch` tasks of each worker are under way or wait to be taken.
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
            generator=torch.Generator(),  # the seed that it draws must not come from the numbers of the model's dropout
        )
    )
    # For good: an exception's frames can keep the workers alive even after this generator has been closed.
    atexit.register(_kill, set(multiprocessing.active_children()) - others)
    yield from map(_unpacked, results)


class Work(Dataset[tuple[Task, Made]]):
    """A worker's side."""

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
                # An exception would cross the process border wrapped in a traceback.
                return task, str(error)
        return task, made


def _leave_signals_to_the_rank(worker: int) -> None:
    """Ctrl-C, `timeout` and Slurm signal every process of a group; workers end with their rank, after its checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # A rank that is killed takes them along; at their own end they would wait for it to read what they have made.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(workers: set[Any]) -> None:
    """At the rank's exit, before multiprocessing's own exit handler sends SIGTERM, which workers ignore, and waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for a worker that was killed
    for worker in workers:
        worker.kill()


def _packed(result: Any) -> Any:
    """A result as it crosses the process border: arrays, since torch would open a shared file for each small tensor."""
    task, made = result
    return task, made if isinstance(made, str) else [_arrays(one) if isinstance(one, TokenRow) else one for one in made]


def _arrays(row: TokenRow) -> dict[str, Any]:
    return vars(row) | {name: getattr(row, name).numpy() for name in TENSORS}


def _unpacked(result: Any) -> tuple[Task, Made]:
    task, made = result
    return task, made if isinstance(made, str) else [_row(one) if isinstance(one, dict) else one for one in made]


def _row(fields: dict[str, Any]) -> TokenRow:
    return TokenRow(**(fields | {name: torch.from_numpy(fields[name]) for name in TENSORS}))

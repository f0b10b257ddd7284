"""Runs the work of a command in processes on this machine, or on a Dask cluster.

Dask rather than Ray Data: work on a shard or chunk is a plain function of a path, so a task scheduler is all that is
needed. Dask's is pure Python, starts inside a Slurm job or a Kubernetes pod without a daemon, and reassigns the tasks of a
worker that dies. A finished chunk is a file, so a command continues where it stopped, on either.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from onediff.errors import UserError
from onediff.progress import progress

Found = TypeVar("Found")
Workers = int | str | None
"""A number of processes (None: all cores), or the address of a Dask scheduler."""
RETRIES = 2
"""How often a task is reassigned after its worker dies."""


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--processes`."""
    text = "worker processes (default: all cores), or a Dask scheduler whose workers share the folders: tcp://HOST:PORT"
    parser.add_argument("--processes", type=workers, metavar="N", help=text)


def workers(text: str) -> int | str:
    """`4`, or `tcp://host:8786`. Raises ArgumentTypeError."""
    if "://" in text:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor tcp://HOST:PORT") from None


def on_cluster(
    work: Callable[..., Found],
    items: Sequence[Any],
    address: str,
    folder: Path,
    title: str,
    unit: str = "shards",
    first: Any = None,
) -> Iterator[Found]:
    """`work(item)`, or `work(first, item)`, for every item on the cluster at `address`, in order.

    `first` is sent to each worker once. Raises UserError if there is no such cluster, a worker does not see `folder`, or a
    task has lost its worker too often; also raises the exceptions of `work`.
    """
    with _connected(address) as client, progress(len(items), title, unit) as bar:
        # A worker that has just died does not answer; its tasks go to others.
        seen = client.run(os.path.isdir, str(folder.resolve()), on_error="ignore")
        blind = [worker for worker, sees in seen.items() if not sees]
        if blind:
            raise UserError(
                f"{folder}: the Dask worker {blind[0]} does not see this folder; it must be on a shared disk"
            )
        common = [client.scatter(first, broadcast=True)] if first is not None else []
        tasks = [client.submit(work, *common, item, pure=False, retries=RETRIES) for item in items]
        try:
            for task in tasks:
                yield task.result()
                bar.update()
        except _lost() as error:
            raise UserError(f"{address}: a worker died {RETRIES + 1} times at the same task: {error}") from error
        finally:
            client.cancel(tasks)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError:
        raise UserError(f"{address}: pip install distributed to use a Dask cluster") from None
    try:
        client = Client(address, timeout=20)
    except (OSError, ValueError) as error:
        raise UserError(f"{address}: no Dask scheduler answers there ({error})") from None
    try:
        if not client.scheduler_info()["workers"]:
            raise UserError(f"{address}: the Dask scheduler has no workers; start some with 'dask worker {address}'")
        yield client
    finally:
        client.close()


def _lost() -> type[Exception]:
    from distributed import KilledWorker

    return KilledWorker

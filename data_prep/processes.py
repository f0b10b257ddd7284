"""Makes chunks in several processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from data_prep.chunks import Chunks
from onediff.errors import UserError
from onediff.progress import progress as progress_of


def run_chunks(
    state: Chunks, todo: dict[int, list[int]], count: int, processes: int, title: str, progress: bool
) -> None:
    """Makes the chunks `todo` in this process and `processes - 1` others."""
    already = count - sum(len(indices) for indices in todo.values())
    others = min(processes, len(todo)) - 1
    with progress_of(count, title, "samples", initial=already, shown=progress) as bar:
        if others <= 0:
            for n, indices in todo.items():
                state.write(n, indices, bar.update)
            return
        context = multiprocessing.get_context("spawn")
        made, stop, taken = context.Value("q", 0), context.Event(), context.Array("b", len(todo))
        shared = (state, taken, made, stop)
        pool = ProcessPoolExecutor(others, context, initializer=start_worker, initargs=(*shared, os.getpid()))
        failed: list[Future[None]] = []

        def look() -> None:
            bar.update(already + made.value - bar.n)
            if failed:
                failed[0].result()

        def done() -> None:
            with made.get_lock():
                made.value += 1
            look()

        try:
            jobs = {pool.submit(work_chunk, place, n, indices) for place, (n, indices) in enumerate(todo.items())}
            for job in jobs:
                job.add_done_callback(
                    lambda job: failed.append(job) if not job.cancelled() and job.exception() else None
                )
            # While the workers start, this process works from the end of the list.
            for place, n in reversed(list(enumerate(todo))):
                if claimed_chunk(taken, place):
                    state.write(n, todo[n], done)
            while jobs:
                jobs = wait(jobs, timeout=0.2, return_when=FIRST_COMPLETED).not_done
                look()
        except BrokenProcessPool as error:
            raise UserError(
                f"{state.work}: a worker process was killed (out of memory?); run the command again to "
                "continue, with fewer --processes"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def start_worker(state: Chunks, taken: Any, made: Any, stop: Any, parent: int) -> None:
    """Sets up one worker, which ignores Ctrl-C and exits when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    global worker
    worker = state, taken, made, stop


worker: tuple[Chunks, Any, Any, Any]


def claimed_chunk(taken: Any, place: int) -> bool:
    """Whether this process is the first to claim the chunk at that position in the list.

    Cancelling its future instead would break Python 3.11's pool when a worker dies.
    """
    with taken.get_lock():
        first = not taken[place]
        taken[place] = 1
    return first


def work_chunk(place: int, n: int, indices: list[int]) -> None:
    """Makes one chunk in a worker, unless another process has claimed it."""
    state, taken, made, stop = worker
    if not claimed_chunk(taken, place):
        return

    def done() -> None:
        with made.get_lock():
            made.value += 1
        if stop.is_set():
            raise InterruptedError("the writer is stopping")

    state.write(n, indices, done)

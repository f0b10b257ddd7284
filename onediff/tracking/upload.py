"""Sends files to an artifact store, several at once, and skips those that have arrived."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

AT_ONCE = 8
SLOWEST = 5e6  # bytes per second below which a request counts as failed
LIMIT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def upload(
    files: Mapping[str, Path],
    there: Mapping[str, str],
    put: Callable[[str, str | None], None],
    noted: Callable[[str, str], None],
) -> None:
    """Sends `files` (name in the store → file with the same last name) by `put(file, folder)`; calls `noted` for each.

    Files that `there` lists with the same size and time are skipped. Raises the first error after the others were tried, or
    after a few of them failed too; the next call continues from there.
    """
    errors: list[Exception] = []

    def send(name: str) -> None:
        path = files[name]
        mark = f"{path.stat().st_size} {path.stat().st_mtime_ns}"
        if there.get(name) == mark or len(errors) >= AT_ONCE:
            return
        try:
            put(str(path), posixpath.dirname(name) or None)
            noted(name, mark)
        except Exception as error:  # a store, a proxy or a network may answer anything
            errors.append(error)

    with (
        time_for(max((path.stat().st_size for path in files.values()), default=0)),
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        list(pool.map(send, files))
    if errors:
        raise errors[0]


def below(folder: Path, to: str) -> dict[str, Path]:
    """The files in `folder`, by their names in the folder `to` of a store."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {posixpath.join(to, path.relative_to(folder).as_posix()): path for path in found}


@contextmanager
def time_for(size: int) -> Iterator[None]:
    """Extends the time limit of a request by the time that `size` bytes may need."""
    usual = os.environ.get(LIMIT)
    if usual is not None:
        os.environ[LIMIT] = str(round(int(usual) + size / SLOWEST))
    try:
        yield
    finally:
        if usual is not None:
            os.environ[LIMIT] = usual

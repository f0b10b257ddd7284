"""Files that lie elsewhere: `https://…`, `s3://…`, `gs://…`, and what a command prints (`pipe:ssh host cat /sets/pairs/{}`).

webdataset's `gopen` opens all of them but two: http(s) is read here, since the `curl` that gopen starts repeats a transfer
that broke off into the same stream and never gives up on one that stands still; and `s3`, which gopen does not know.
"""

from __future__ import annotations

import logging
import os
import re
import select
import shlex
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError

from onediff.config.addresses import PLACE, below
from onediff.errors import UserError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

TRIES = 5
PAUSE = 1.0
"""Seconds before the second try; twice as long before each further one."""
STALL = 60.0
"""Seconds without a byte after which a transfer has failed."""
PIECE = 1 << 20
# What a manifest of a stranger may name: no commands, and nothing that a shell would read.
PLAIN_URL = re.compile(r"(https?|s3|gs|ais|hf)://[\w.~%/:@?&=+,-]+")


def file_in(folder: str, name: str) -> str:
    """The URL of the file `name` in `folder`."""
    return folder.replace(PLACE, shlex.quote(name)) if folder.startswith("pipe:") else below(folder, name)


def pieces(url: str) -> Iterator[bytes]:
    """The bytes behind `url`, piece by piece. Raises OSError or HTTPException when they do not come."""
    if url.startswith(("http://", "https://")):
        with urllib.request.urlopen(url, timeout=STALL) as answer:
            left = int(answer.headers.get("Content-Length", 0))
            while piece := answer.read(PIECE):
                left -= len(piece)
                yield piece
            if left > 0:  # urllib says nothing when a connection breaks
                raise OSError(f"the transfer broke off {left} bytes before its end")
        return
    stream = _opened(url)
    try:
        while piece := _read(stream, url):
            yield piece
    except BaseException:
        if hasattr(stream, "proc"):
            stream.proc.kill()
            stream.ignore_errors = True
        raise
    finally:
        stream.close()  # raises OSError where the command failed


def retried(url: str, fetch: Callable[[], Result]) -> Result:
    """What `fetch` returns, tried again after a pause where the transfer fails. Raises UserError after the last try."""
    for tried in range(1, TRIES + 1):
        try:
            return fetch()
        except (OSError, HTTPException) as error:
            final = isinstance(error, HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429)
            if final or tried == TRIES:
                raise UserError(
                    f"{url}: cannot be fetched, tries: {tried}, the last error: {str(error) or type(error).__name__}; "
                    "check the address and that this machine may read it"
                ) from None
            pause = PAUSE * 2 ** (tried - 1)
            log.warning("%s: %s; next try in %g s", url, str(error) or type(error).__name__, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def fetched(url: str) -> bytes:
    """A small file, whole. Raises UserError."""
    return retried(url, lambda: b"".join(pieces(url)))


def _opened(url: str) -> Any:
    from webdataset.gopen import Pipe, gopen  # not at the top: the launcher reads manifests and starts without torch

    if url.startswith("s3://"):
        return Pipe(["aws", "s3", "cp", "--only-show-errors", url, "-"], mode="rb", bufsize=0)
    return gopen(url, "rb")


def _read(stream: Any, url: str) -> bytes:
    """The next bytes of a file or of a command's output, as soon as there are some."""
    inner = getattr(stream, "stream", stream)
    if not select.select([inner], [], [], STALL)[0]:
        raise TimeoutError(f"no byte for {STALL:g} s")
    return os.read(inner.fileno(), PIECE)

"""Files that lie elsewhere: `https://…`, `s3://…`, `gs://…`, `az://…`, `hf://…`, and what a command prints
(`pipe:ssh host cat /sets/pairs/{}`).

fsspec reads all but the last, each store by the package that the table below names. What a store needs, such as keys or an
endpoint of its own, comes from where its package looks for it (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, `HF_TOKEN`, …).
"""

from __future__ import annotations

import logging
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

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
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""The extra of this package that brings what reads a kind of store. http(s) and the hub are always there."""
# What a manifest of a stranger may name: no commands, no files of this machine, and nothing that a shell would read.
PLAIN_URL = re.compile(r"(https?|s3|gs|az|hf)://[\w.~%/:@?&=+,-]+")


def file_in(folder: str, name: str) -> str:
    """The URL of the file `name` in `folder`."""
    return folder.replace(PLACE, shlex.quote(name)) if folder.startswith("pipe:") else below(folder, name)


def pieces(url: str) -> Iterator[bytes]:
    """The bytes at `url`, piece by piece. Raises OSError when they do not come, UserError when they never can."""
    if url.startswith("pipe:"):
        yield from _printed(url.removeprefix("pipe:"))
        return
    import fsspec

    protocol = url.partition("://")[0]
    try:
        with fsspec.open(url, "rb", **_options(protocol)) as file:
            while piece := file.read(PIECE):
                yield piece
    except OSError:
        raise
    except ImportError as error:
        if protocol not in EXTRAS:
            raise UserError(f"{url}: {error}") from None
        raise UserError(f"{url}: {error}; run: pip install 'onediff[{EXTRAS[protocol]}]'") from None
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise OSError(str(error)) from error
        raise UserError(f"{url}: {error}; give `pipe:` and a command that prints the file") from None
    except Exception as error:  # each store's package has errors of its own
        status = getattr(error, "status", None)
        refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
        raise (PermissionError if refused else OSError)(str(error) or type(error).__name__) from error


def retried(url: str, fetch: Callable[[], Result]) -> Result:
    """What `fetch` returns, tried again after a pause when the transfer fails. Raises UserError after the last try."""
    for tried in range(1, TRIES + 1):
        try:
            return fetch()
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
            if isinstance(error, FileNotFoundError | PermissionError) or tried == TRIES:
                raise UserError(
                    f"{url}: cannot be fetched, tries: {tried}, the last error: {reason}; "
                    "check the address and that this machine may read it"
                ) from None
            pause = PAUSE * 2 ** (tried - 1)
            log.warning("%s: %s; next try in %g s", url, reason, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def fetched(url: str) -> bytes:
    """A small file, whole. Raises UserError."""
    return retried(url, lambda: b"".join(pieces(url)))


def _options(protocol: str) -> dict[str, Any]:
    """What fsspec must be told: to give up on transfers that stand still, and to stream instead of asking for ranges."""
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        return {"block_size": 0, "client_kwargs": {"timeout": timeout, "trust_env": True}}
    if protocol in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": STALL, "read_timeout": STALL}}
    return {}


def _printed(command: str) -> Iterator[bytes]:
    """What a shell command prints, as soon as there is some. Raises OSError if it fails or prints nothing for long."""
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            while True:
                if not select.select([process.stdout], [], [], STALL)[0]:
                    raise TimeoutError(f"no byte for {STALL:g} s")
                if not (piece := process.stdout.read(PIECE)):
                    break
                yield piece
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise OSError(f"the command ended with exit code {process.returncode}")

"""Remote files: `https://…`, `s3://…`, `gs://…`, `az://…`, `hf://…`, and the output of a command
(`pipe:ssh host cat /sets/pairs/{}`).

fsspec reads everything except pipes; `EXTRAS` names the extra that each store needs. Credentials and endpoints are
configured as each store's package documents (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, `HF_TOKEN`, …).
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
"""Seconds before the second try, doubled before each further one."""
STALL = 60.0
"""Seconds without data after which a transfer has failed."""
PIECE = 1 << 20
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""The pip extra for each protocol. http(s) and the Hugging Face hub need none."""
# What an untrusted manifest may name: no commands, no local files, and no characters with a meaning in a shell.
PLAIN_URL = re.compile(r"(https?|s3|gs|az|hf)://[\w.~%/:@?&=+,-]+")


def file_in(folder: str, name: str) -> str:
    """The URL of the file `name` in `folder`."""
    return folder.replace(PLACE, shlex.quote(name)) if folder.startswith("pipe:") else below(folder, name)


def pieces(url: str) -> Iterator[bytes]:
    """Yields the bytes at `url` in pieces. Raises OSError if a transfer fails, and UserError if it can never succeed."""
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
        raise UserError(f"{url}: {error}; use `pipe:` with a command that prints the file") from None
    except Exception as error:  # each store's package has its own exceptions
        status = getattr(error, "status", None)
        refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
        raise (PermissionError if refused else OSError)(str(error) or type(error).__name__) from error


def retried(url: str, fetch: Callable[[], Result]) -> Result:
    """Calls `fetch`, retrying after a pause if the transfer fails. Raises UserError after the last try."""
    for tried in range(1, TRIES + 1):
        try:
            return fetch()
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
            if isinstance(error, FileNotFoundError | PermissionError) or tried == TRIES:
                raise UserError(
                    f"{url}: cannot be fetched, tries: {tried}, last error: {reason}; "
                    "check the address and this machine's access to it"
                ) from None
            pause = PAUSE * 2 ** (tried - 1)
            log.warning("%s: %s; retrying in %g s", url, reason, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def fetched(url: str) -> bytes:
    """The contents of a small file. Raises UserError."""
    return retried(url, lambda: b"".join(pieces(url)))


def _options(protocol: str) -> dict[str, Any]:
    """Options for fsspec: abort stalled transfers, and stream instead of requesting ranges."""
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        return {"block_size": 0, "client_kwargs": {"timeout": timeout, "trust_env": True}}
    if protocol in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": STALL, "read_timeout": STALL}}
    return {}


def _printed(command: str) -> Iterator[bytes]:
    """Yields a shell command's output as it arrives. Raises OSError if it fails or prints nothing for `STALL` seconds."""
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
        raise OSError(f"the command exited with code {process.returncode}")

"""Fetches images by URL: over http and https only, from hosts that the user allows, with limits on size and time."""

from __future__ import annotations

import ipaddress
import socket
import time
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from onediff.data.sample import BadSample
from onediff.errors import UserError

ANY = "any"
"""Stands for all hosts that have only public addresses."""
MAX_BYTES = 1 << 28
SECONDS = 60.0
"""Longest time for one image, and longest wait for a byte of it."""
TRIES = 3
PAUSE = 1.0
"""Seconds before the second attempt; doubled before the third."""
PIECE = 1 << 16


def is_url(path: str) -> bool:
    """Whether `path` names an image elsewhere."""
    return "://" in path


def check_url(url: str, hosts: tuple[str, ...], where: str) -> str:
    """Returns `url` if it may be fetched, without network access. Raises UserError."""
    fault = _fault(url, hosts)
    if fault:
        raise UserError(f"{where}: {url!r} is a URL{fault}")
    return url


def fetch(url: str, hosts: tuple[str, ...]) -> bytes:
    """The bytes at `url`. Raises `BadSample` if three attempts fail or there are too many bytes."""
    for tried in range(1, TRIES + 1):
        try:
            return _once(url, hosts)
        except BadSample:
            raise
        except (OSError, HTTPException, ValueError) as error:
            final = isinstance(error, HTTPError) and error.code not in (408, 429) and error.code < 500
            if final or isinstance(error, ValueError) or tried == TRIES:
                raise BadSample(
                    "missing_image", f"{url!r} cannot be fetched: {error or type(error).__name__}"
                ) from error
            time.sleep(PAUSE * tried)
    raise AssertionError("unreachable")


def _once(url: str, hosts: tuple[str, ...]) -> bytes:
    deadline, data = time.monotonic() + SECONDS, bytearray()
    _refuse_private(url, hosts)
    with urllib.request.build_opener(_Redirects(hosts)).open(url, timeout=SECONDS) as answer:
        declared = int(answer.headers.get("Content-Length") or 0)
        while max(declared, len(data)) <= MAX_BYTES:
            piece = answer.read1(PIECE)
            if not piece:
                break
            data += piece
            if time.monotonic() > deadline:
                raise TimeoutError(f"more than {SECONDS:g} s")
    if max(declared, len(data)) > MAX_BYTES:
        raise BadSample("too_large", f"{url!r} has more than {MAX_BYTES:,} bytes")
    if len(data) < declared:
        raise OSError(f"the transfer broke off after {len(data):,} of {declared:,} bytes")
    return bytes(data)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to hosts that the user allows, over http and https."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        self.hosts = hosts

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        fault = _fault(newurl, self.hosts)
        if fault:
            raise ValueError(f"it redirects to {newurl!r}{fault}")
        _refuse_private(newurl, self.hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fault(url: str, hosts: tuple[str, ...]) -> str:
    """Why `url` may not be fetched, as text to follow the URL; empty if it may."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return f" that cannot be read ({error})"
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        return "; only http and https are fetched: name the image by a path"
    if urlsplit(url).path.lower().endswith((".tar", ".zip")):
        return "; fetch the archive first and name its member as ARCHIVE#MEMBER"
    if ANY not in hosts and parts.hostname not in hosts:
        return f"; add --fetch {parts.hostname} to fetch images from there, or download them first"
    return ""


def _refuse_private(url: str, hosts: tuple[str, ...]) -> None:
    """With `any`, keeps a stranger's table from reaching hosts in this machine's private networks. Raises ValueError."""
    host = str(urlsplit(url).hostname)
    if host in hosts:
        return
    for *_, address in socket.getaddrinfo(host, None):
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            raise ValueError(f"{host} has no public address; name it with --fetch {host}")

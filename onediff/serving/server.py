"""The page's server: Python's own, on the loopback address, one pair at a time.

`GET /` is the page, `POST /caption` takes `{"before", "after"}` (files as base64) and gives `{"caption", "seconds",
"images", "heat"}` with images as data URIs, or `{"error"}`. Nothing is kept, and nothing is asked of another machine.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from onediff.data.images import open_upright
from onediff.data.sample import BadSample
from onediff.errors import UserError
from onediff.evaluation.heat import heat_images, packed, png, unpacked

if TYPE_CHECKING:
    from onediff.evaluation.captioner import Captioner

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
SIDE = 768
"""Pixels of the longer side of the images that the page shows."""
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PageServer(ThreadingHTTPServer):
    """Serves one captioner on 127.0.0.1; `max_bytes` bounds what may be sent at once. Port 0 takes any that is free."""

    daemon_threads = True

    def __init__(self, captioner: Captioner, port: int, max_bytes: int = 64_000_000) -> None:
        """Raises UserError when the port is taken."""
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {getattr(error, 'strerror', None) or error}; choose another") from None
        self.captioner = captioner
        self.max_bytes = max_bytes
        self.one_at_a_time = threading.Lock()

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HOST}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer
    timeout = 60  # seconds in which a request must have come
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "onediff", ""

    def do_GET(self) -> None:
        """The page."""
        if not self._is_from_here():
            return
        if self.path != "/":
            self._send(404, {"error": "there is one page here: /"})
            return
        self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """A caption."""
        if not self._is_from_here():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/caption" or not length.isdecimal():
            self._refuse(404 if self.path != "/caption" else 411, "POST /caption takes a body of a known length")
        elif int(length) > self.server.max_bytes:
            self._refuse(413, f"the two images are larger than {self.server.max_bytes / 1e6:g} MB together")
        else:
            try:
                self._send(200, captioned(self.server, self.rfile.read(int(length))))
            except UserError as error:
                self._send(400, {"error": str(error)})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what people look at is not written down."""

    def _is_from_here(self) -> bool:
        """Refuses what another site's page, or another name for this machine, sends through the user's browser."""
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (origin is None or origin in {f"http://{host}" for host in hosts}):
            return True
        self._refuse(403, f"open {self.server.address} itself")
        return False

    def _refuse(self, status: int, why: str) -> None:
        # The body is left unread, so the connection cannot go on.
        self.close_connection = True
        self._send(status, {"error": why})

    def _send(self, status: int, body: bytes | dict[str, Any], kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Content-Security-Policy": POLICY}
        headers |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


def captioned(server: PageServer, body: bytes) -> dict[str, Any]:
    """The answer to one request. Raises UserError for what is not two images."""
    captioner = server.captioner
    images = [image_of(body, role, captioner.processor.config.max_pixels) for role in ("before", "after")]
    with server.one_at_a_time:
        started = time.perf_counter()
        rows = [captioner.row(images[0], images[1])]
        (caption,) = captioner.answer(rows)
        heat = unpacked(packed(captioner.heat_maps(rows)[0]))
        seconds = time.perf_counter() - started
    for image in images:
        image.thumbnail((SIDE, SIDE))
    maps = heat_images(heat, [image.size for image in images], captioner.processor.image)
    return {
        "caption": caption,
        "seconds": round(seconds, 2),
        "images": [data_uri(jpeg(image), "jpeg") for image in images],
        "heat": [data_uri(png(one), "png") for one in maps],
    }


def image_of(body: bytes, role: str, max_pixels: int) -> Image.Image:
    """One image of a request, upright and RGB. Raises UserError."""
    try:
        return open_upright(base64.b64decode(json.loads(body)[role], validate=True), max_pixels)
    except BadSample as bad:
        raise UserError(f"{role}: not an image that can be read: {bad.reason}") from None
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise UserError(f"{role}: missing; send {{before, after}} as base64") from None


def jpeg(image: Image.Image) -> bytes:
    """The image as JPEG."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of an image as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

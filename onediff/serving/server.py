"""Captions over HTTP: the page, an OpenAI-compatible endpoint, and metrics. The server contacts no other machine and keeps
nothing, except pairs for which users make a link, in memory.

    GET  /                       the page
    POST /caption                {"before", "after"} in base64 → {"caption", "confidence", "warning", "instead_of",
                                 "seconds", "images", "attention"}
    POST /keep                   {"before", "after"} in base64 → {"name"}; GET /kept/NAME returns the pair
    POST /v1/chat/completions    OpenAI's form, see `onediff.serving.openai`
    GET  /v1/models, /metrics, /health

A thread per connection reads requests and images; one thread owns the model (`Batcher`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import io
import json
import socket
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from onediff.data.images import open_upright
from onediff.data.sample import BadSample
from onediff.errors import UserError
from onediff.evaluation.attention_map import map_images, packed, png, unpacked
from onediff.serving import openai
from onediff.serving.batching import Batcher, Overloaded
from onediff.serving.kept import KeptPairs
from onediff.serving.room import Room

if TYPE_CHECKING:
    from onediff.evaluation.captioner import Captioner

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
SIDE = 768
"""Pixels of the longer side of the images that the page shows."""
ROLES = ("before", "after")
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
POSTS = ("/caption", "/keep", "/v1/chat/completions")
KEPT = "/kept/"
LARGEST_AT_ONCE = 8
"""Requests of the largest size that may be in memory at once."""
MOST_DROPPED = 256_000_000
"""Bytes of a refused request that are still read."""


class CaptionServer(ThreadingHTTPServer):
    """Serves one captioner; port 0 picks a free one. Close it, or leave its `with` block, to stop its thread."""

    daemon_threads = True
    request_queue_size = 1024
    """Connections that may wait to be accepted; beyond that, clients see resets."""

    def __init__(
        self,
        captioner: Captioner,
        port: int,
        max_bytes: int = 64_000_000,
        *,
        host: str = HOST,
        name: str = "onediff",
        max_batch: int = 16,
        max_waiting: int = 512,
        api_key: str | None = None,
    ) -> None:
        """`max_bytes` limits the size of a request; the OpenAI endpoint requires `api_key` if one is given.

        Raises UserError if the port is taken, or if the host is not an address of this machine.
        """
        try:
            super().__init__((host, port), Handler)
        except socket.gaierror as error:
            raise UserError(f"--host {host}: {error.strerror}; give an address of this machine") from None
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {getattr(error, 'strerror', None) or error}; choose another") from None
        self.captioner, self.max_bytes, self.name, self.api_key = captioner, max_bytes, name, api_key
        self.host = host
        self.is_local = host in (HOST, "localhost")
        self.batcher = Batcher(captioner, max_batch, max_waiting)
        self.kept = KeptPairs()
        self.room = Room(LARGEST_AT_ONCE * max_bytes)
        self.statuses: Counter[int] = Counter()
        self.created = int(time.time())

    def server_close(self) -> None:
        """Frees the port and stops the batcher."""
        super().server_close()
        if hasattr(self, "batcher"):
            self.batcher.close()

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://{self.host}:{self.server_port}/"

    def metrics(self) -> str:
        """Prometheus' text format."""
        counts = self.batcher.counts
        told = [
            ("captions_total", "counter", counts.captions),
            ("batches_total", "counter", counts.batches),
            ("failed_total", "counter", counts.failed),
            ("caption_seconds_total", "counter", round(counts.waited_seconds, 6)),
            ("busy_seconds_total", "counter", round(counts.busy_seconds, 6)),
            ("waiting", "gauge", len(self.batcher.queue)),
        ]
        lines = [
            line for name, kind, value in told for line in (f"# TYPE onediff_{name} {kind}", f"onediff_{name} {value}")
        ]
        lines.append("# TYPE onediff_requests_total counter")
        lines += [f'onediff_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.statuses.items())]
        return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: CaptionServer
    timeout = 60  # seconds within which a request must arrive
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "onediff", ""

    def handle_one_request(self) -> None:
        """Handles a request. A client that disconnects early gets no answer."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses what `http.server` itself rejects: a request that is not HTTP, another method."""
        self.close_connection = True
        self._fail(405 if code == 501 else code, message or "not a request that this server supports")

    def do_HEAD(self) -> None:
        """`do_GET` without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """The page, kept pairs, models, metrics and health."""
        if not self._is_allowed():
            return
        if self.path == "/":
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/metrics":
            self._send(200, self.server.metrics().encode(), "text/plain; version=0.0.4")
        elif self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self.path == "/v1/models":
            model = {"id": self.server.name, "object": "model", "created": self.server.created, "owned_by": "onediff"}
            self._send(200, {"object": "list", "data": [model]})
        elif self.path.startswith(KEPT) and (pair := self.server.kept.get(self.path.removeprefix(KEPT))):
            self._send(200, {role: base64.b64encode(data).decode() for role, data in zip(ROLES, pair, strict=True)})
        else:
            self._send(404, {"error": "no such page; there are /, /v1/models, /metrics and /health"})

    def do_POST(self) -> None:
        """A caption."""
        if not self._is_allowed():
            return
        length = self.headers.get("Content-Length", "")
        if self.path not in POSTS or not length.isdecimal():
            self._refuse(411 if self.path in POSTS else 404, f"POST {' or '.join(POSTS)}, with a Content-Length")
        elif int(length) > self.server.max_bytes:
            self._refuse(413, f"the request is larger than {self.server.max_bytes / 1e6:g} MB")
        else:
            try:
                with self.server.room.of(int(length)):
                    self._respond(self.rfile.read(int(length)))
            except Overloaded as error:
                self._refuse(503, str(error))

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: what people look at is private."""

    def _respond(self, body: bytes) -> None:
        try:
            self._answer(body)
        except UserError as error:
            self._fail(400, str(error))
        except Overloaded as error:
            self._fail(503, str(error))
        except ConnectionError:
            raise
        except Exception as error:  # from the model: out of memory, or a device error
            self._fail(500, f"{type(error).__name__}: {error}")

    def _answer(self, body: bytes) -> None:
        if self.path == "/caption":
            self._send(200, captioned(self.server, body))
            return
        if self.path == "/keep":
            files = [file_in(body, role) for role in ROLES]
            for data, role in zip(files, ROLES, strict=True):
                with self.server.room.decoding:
                    image_of(data, role, self.server.captioner)  # only images are kept
            self._send(200, {"name": self.server.kept.keep(*files)})
            return
        asked = openai.parsed(body)
        whole = completed(self.server, asked)
        if asked.stream:
            self._send(200, b"".join(openai.chunks(whole)), "text/event-stream")
        else:
            self._send(200, whole)

    def _fail(self, status: int, why: str) -> None:
        # A request that is not HTTP has no path.
        is_openai = getattr(self, "path", "").startswith("/v1/")
        self._send(status, openai.error(status, why) if is_openai else {"error": why})

    def _is_allowed(self) -> bool:
        """Refuses wrong keys, and requests that a browser sends for another site or under another host name."""
        given, origin = self.headers.get("Host"), self.headers.get("Origin")
        hosts = (
            {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")} if self.server.is_local else {given}
        )
        if given not in hosts or (origin is not None and origin not in {f"http://{host}" for host in hosts}):
            self._refuse(403, f"open {self.server.address} itself")
            return False
        key = self.server.api_key
        told = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if key is not None and self.path.startswith("/v1/") and not hmac.compare_digest(told.encode(), key.encode()):
            self._refuse(401, "a wrong or missing API key")
            return False
        return True

    def _refuse(self, status: int, why: str) -> None:
        """Answers a request whose body has not been read, and ends the connection.

        Most clients read an answer only after they have sent everything, so a body is read and dropped, up to a limit.
        """
        self.close_connection = True
        self._fail(status, why)
        length = self.headers.get("Content-Length", "")
        left = min(int(length), MOST_DROPPED) if length.isdecimal() else 0
        while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
            left -= len(piece)

    def _send(self, status: int, body: bytes | dict[str, Any], kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.server.statuses[status] += 1
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Content-Security-Policy": POLICY}
        headers |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
        if status == 503:
            headers["Retry-After"] = "1"
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def completed(server: CaptionServer, asked: openai.Asked) -> dict[str, Any]:
    """Answers a chat completion. Raises UserError unless it holds two images."""
    captioner = server.captioner
    with server.room.decoding:
        images = [image_of(data, role, captioner) for data, role in zip(asked.images, ROLES, strict=True)]
        row = captioner.row(images[0], images[1], asked.question)
        images.clear()
    said = server.batcher.ask(row, asked.max_new_tokens).said
    tokens = len(captioner.tokenizer(said.caption, add_special_tokens=False)["input_ids"])
    return openai.completion(server.name, said, len(row.token_ids), tokens, tokens >= asked.max_new_tokens)


def captioned(server: CaptionServer, body: bytes) -> dict[str, Any]:
    """Answers the page. Raises UserError unless the body holds two images."""
    captioner = server.captioner
    files = [file_in(body, role) for role in ROLES]
    with server.room.decoding:
        images = [image_of(data, role, captioner) for data, role in zip(files, ROLES, strict=True)]
        row = captioner.row(images[0], images[1])
        for image in images:
            image.thumbnail((SIDE, SIDE))
    started = time.perf_counter()
    answer = server.batcher.ask(row, wants_attention=True)
    seconds = time.perf_counter() - started
    maps = map_images(unpacked(packed(answer.attention)), [image.size for image in images], captioner.processor.image)
    return {
        **answer.said._asdict(),
        "seconds": round(seconds, 2),
        "images": [data_uri(jpeg(image), "jpeg") for image in images],
        "attention": [data_uri(png(one), "png") for one in maps],
    }


def file_in(body: bytes, role: str) -> bytes:
    """One file of a request from the page. Raises UserError."""
    try:
        return base64.b64decode(json.loads(body)[role], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise UserError(f"{role}: missing; send {{before, after}} as base64") from None


def image_of(data: bytes, role: str, captioner: Captioner) -> Image.Image:
    """An image of a request, upright, in RGB. Raises UserError."""
    try:
        return open_upright(data, captioner.processor.config.max_pixels)
    except BadSample as bad:
        raise UserError(f"{role}: not an image that can be read: {bad.reason}") from None


def jpeg(image: Image.Image) -> bytes:
    """The image as JPEG."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """An encoded image as a `data:` URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

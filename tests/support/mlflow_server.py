"""A real MLflow server for tests, and a proxy before it that can misbehave."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class MlflowServer:
    """`mlflow server` with a SQLite store and an artifact proxy, in `folder`; can be stopped and started again."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.host = folder, host
        self.port = free_port()
        self.url = f"http://{host}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "MlflowServer":
        store = f"sqlite:///{self.folder}/mlflow.db"
        words = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)]
        words += [
            "--backend-store-uri",
            store,
            "--artifacts-destination",
            str(self.folder / "artifacts"),
            "--workers",
            "1",
        ]
        # Without the workers for scheduled jobs, which nothing here uses, it is there in half the time.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = open(self.folder / "server.log", "ab")  # noqa: SIM115 (the server writes to it until it is stopped)
        self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
        log.close()
        deadline = time.monotonic() + 180
        while True:
            try:
                with urlopen(f"{self.url}/health", timeout=2):
                    return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError((self.folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.2)

    def stop(self) -> None:
        """Ends the server and its workers, by the process group that they were started in."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class FaultyProxy:
    """Passes requests on to `target`, or answers 500, hangs, or cuts the connection, as `mode` says.

    `refuse` answers a status to what has the text in its path, without asking the server; `every` makes every that many-th
    request fail; `slow` holds an upload up for that many seconds.
    """

    def __init__(self, target_port: int, hang_seconds: float = 10.0) -> None:
        self.mode = "pass"
        self.refuse: dict[str, int] = {}
        self.every = 0
        self.slow = 0.0
        self.asked = self.refused = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                del self.headers["Transfer-Encoding"]
                whole = b""
                while size := int(self.rfile.readline(), 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole

            def answer(self) -> None:
                body = self.body()
                proxy.asked += 1
                status = next((code for text, code in proxy.refuse.items() if text in self.path), 0)
                if proxy.every and proxy.asked % proxy.every == 0:
                    status = 500
                if self.command == "PUT":
                    proxy.ended.wait(proxy.slow)
                if status:
                    proxy.refused += 1
                    self.send_error(status)
                    return
                if proxy.mode != "pass":
                    proxy.refused += 1
                if proxy.mode == "hang":
                    proxy.ended.wait(hang_seconds)
                if proxy.mode in ("500", "hang"):
                    self.send_response(500)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                onward = http.client.HTTPConnection("127.0.0.1", target_port, timeout=30)
                onward.request(self.command, self.path, body, dict(self.headers))
                reply = onward.getresponse()
                content = reply.read()
                if proxy.mode == "lose answers":
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # the client gave up waiting
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                return

        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

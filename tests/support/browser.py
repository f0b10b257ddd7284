"""Headless Chromium, driven through its DevTools protocol: opens pages, drops files, and knows every request made."""

import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import websocket

# Looked up here: some tests empty PATH.
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)


class Browser(AbstractContextManager["Browser"]):
    """One page in a Chromium of its own; skips the test if there is none."""

    def __init__(self, profile: Path) -> None:
        if BROWSER is None:
            pytest.skip("no Chromium here; Debian's package is `chromium`")
        self.process = subprocess.Popen(
            [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PATH": os.defpath},
        )
        self.requests: list[str] = []
        """Addresses asked for since the page was opened."""
        self.numbers = itertools.count(1)
        try:
            self.socket = websocket.create_connection(self._page(profile), timeout=60, suppress_origin=True)
            for domain in ("Page", "Network", "Runtime", "DOM"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise

    def _page(self, profile: Path) -> str:
        """The address at which the page listens."""
        port, deadline = profile / "DevToolsActivePort", time.monotonic() + 300
        while not (port.exists() and port.read_text().strip()):
            assert self.process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json/list", timeout=30) as answer:
            return next(page["webSocketDebuggerUrl"] for page in json.load(answer) if page["type"] == "page")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result; events on the way are kept."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message}"
                return message["result"]

    def open(self, address: str) -> None:
        """Goes to a page and waits until it has loaded."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> Any:
        """The value of an expression once it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(condition)):
            assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
            time.sleep(0.05)
        return value

    def drop(self, selector: str, *files: Path) -> None:
        """Drags files from outside onto an element and lets go."""
        box = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def outside(self) -> list[str]:
        """The requests that were not for this page's own data or this machine."""
        return [
            u for u in self.requests if not u.startswith(("data:", "blob:", "file:", "about:", "http://127.0.0.1:"))
        ]

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "socket"):
            self.socket.close()
        self.process.kill()
        self.process.wait()

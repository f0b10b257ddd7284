"""A stand-in for the Hugging Face hub on loopback: folders `<owner>/<name>` (or `<name>`) below one root, as repositories.

`HF_ENDPOINT` set to its `url` leads huggingface_hub, and with it transformers, there. Files above `LFS` bytes are told with
their SHA-256 as the hub does for large files, others with git's digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LFS = 10_000
COMMIT = "c0ffee" * 6 + "cafe"


class Hub(ThreadingHTTPServer):
    """Serves the repositories below `root`; remembers what it was asked for."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        """`GET <repository>/<file>` and the first byte asked for, of every download"""
        self.cuts: dict[str, int] = {}
        """bytes after which the next download of a file breaks off"""
        self.gated: set[str] = set()


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """A hub in a thread, ended with the block."""
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def described(file: Path) -> dict[str, object]:
    """A file as the hub's listings have it."""
    content = file.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, object] = {"size": len(content), "oid": blob, "blobId": blob}
    if len(content) > LFS:
        digest = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 134}
    return found


class Handler(BaseHTTPRequestHandler):
    """The few addresses that downloads and uploads use."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        """What an upload asks; all files come inside the commit, as small ones do on the hub."""
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_writer":
            self.refuse(401, "Unauthorized")
        elif path == "api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            (self.server.root / repository).mkdir(parents=True, exist_ok=True)
            self.reply({"url": f"{self.server.url}/{repository}"})
        elif path == "api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self.reply({})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.reply({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        else:
            repository = path.removeprefix("api/models/").partition("/commit/")[0]
            for one in map(json.loads, body.splitlines()):
                if one["key"] == "file":
                    file = self.server.root / repository / one["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(one["value"]["content"]))
            self.reply({"commitUrl": f"{self.server.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            self.listing(path.removeprefix("api/models/"))
        elif "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            self.file(repository, *rest.split("/", 1), body)
        else:
            self.refuse(404, "RepoNotFound")

    def listing(self, path: str) -> None:
        for word in ("/revision/", "/tree/"):
            repository, found, rest = path.partition(word)
            if found:
                break
        folder = self.folder(repository, rest.partition("/")[0] or "main")
        if folder is None:
            return
        below = rest.partition("/")[2] if found == "/tree/" else ""
        files = sorted(file for file in (folder / below).rglob("*") if file.is_file())
        if below and not files:
            self.refuse(404, "EntryNotFound")
            return
        listed = [{"path": file.relative_to(folder).as_posix(), **described(file)} for file in files]
        if found == "/tree/":
            self.reply([{"type": "file", **one} for one in listed])
        else:
            siblings = [{"rfilename": one["path"], **one} for one in listed]
            self.reply({"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "siblings": siblings})

    def file(self, repository: str, revision: str, name: str, body: bool) -> None:
        folder = self.folder(repository, revision)
        if folder is None:
            return
        file = folder / name
        if not file.is_file():
            self.refuse(404, "EntryNotFound")
            return
        about, content = described(file), file.read_bytes()
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        lfs = about.get("lfs")
        self.send_header("ETag", f'"{lfs["sha256"] if isinstance(lfs, dict) else about["oid"]}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.server.asked.append(f"GET {repository}/{name} {first}")
            cut = self.server.cuts.pop(f"{repository}/{name}", None)
            self.wfile.write(content[first:cut])
            if cut is not None:
                self.close_connection = True

    def folder(self, repository: str, revision: str) -> Path | None:
        """The folder of a repository; None if the refusal has been sent."""
        folder = self.server.root / repository
        if not repository or not folder.is_dir():
            self.refuse(401, "RepoNotFound")
        elif repository in self.server.gated:
            self.refuse(403, "GatedRepo")
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            return folder
        return None

    def reply(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        body = json.dumps({"error": code}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return

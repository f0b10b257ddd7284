"""data_prep.web: images by URL from a real server that misbehaves, and never from elsewhere."""

import contextlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_data import encoded, put
from test_readers import convert, records

from data_prep import web
from onediff.data.sample import BadSample

HERE = ("127.0.0.1",)


class Images(http.server.BaseHTTPRequestHandler):
    asked: Counter[str] = Counter()

    def do_GET(self) -> None:
        kind = self.path.strip("/").partition(".")[0]
        self.asked[kind] += 1
        if kind == "gone" or (kind == "busy" and self.asked[kind] == 1):
            self.send_error(404 if kind == "gone" else 503)
        elif kind.startswith("to-"):
            self.send_response(302)
            place = {"to-file": "file:///etc/passwd", "to-other": "http://other.example/1.png", "to-1": "/1.png"}
            self.send_header("Location", place[kind])
            self.end_headers()
        else:
            self.send_image(kind, bytes(3000) if kind == "endless" else encoded(len(kind)))

    def send_image(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", {"large": str(1 << 40), "cut": "99999"}.get(kind, str(len(body))))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the reader may have had enough
            for at in range(0, len(body), 100):
                self.wfile.write(body[at : at + 100])
                if kind == "endless":
                    time.sleep(0.1)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(web, "PAUSE", 0.01)
    monkeypatch.setattr(Images, "asked", Counter())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_comes_is_the_file_also_after_a_redirect_and_a_busy_server(server: str) -> None:
    assert web.fetch(f"{server}/image.png", HERE) == encoded(5)
    assert web.fetch(f"{server}/to-1", HERE) == encoded(1)
    assert web.fetch(f"{server}/busy.png", HERE) == encoded(4)
    assert Images.asked["busy"] == 2


@pytest.mark.parametrize(
    ("name", "kind", "said", "times"),
    [
        ("gone.png", "missing_image", "cannot be fetched: HTTP Error 404: Not Found", 1),
        ("cut.png", "missing_image", "cannot be fetched: the transfer broke off after", 3),
        ("large.png", "too_large", "has more than 268,435,456 bytes", 1),
        ("endless.png", "missing_image", "cannot be fetched: more than 0.3 s", 3),
        ("to-file", "missing_image", "Redirection to url 'file:///etc/passwd' is not allowed", 1),
        ("to-other", "missing_image", "it redirects to 'http://other.example/1.png'; add --fetch other.example", 1),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(
    server: str, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, said: str, times: int
) -> None:
    monkeypatch.setattr(web, "SECONDS", 0.3 if name == "endless.png" else 10.0)
    with pytest.raises(BadSample) as bad:
        web.fetch(f"{server}/{name}", HERE)
    assert bad.value.kind == kind
    assert said in bad.value.reason
    assert Images.asked[name.partition(".")[0]] == times


def test_any_host_means_public_ones(server: str) -> None:
    with pytest.raises(BadSample, match=r"127\.0\.0\.1 has no public address; name it with --fetch"):
        web.fetch(f"{server}/1.png", (web.ANY,))
    assert not Images.asked


def test_a_table_of_urls_is_converted(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{server}/{'a' * n}.png,{server}/{'b' * (n + 1)}.png,it moved {n}" for n in range(1, 4)]
    rows.append(f"{server}/gone.png,{server}/b.png,it left")
    path = put(tmp_path / "t.csv", "\n".join(["before,after,caption", *rows]) + "\n")
    code, _, error = convert(capsys, "generic", tmp_path / "out", "--table", path)
    assert (code, f"t.csv row 1: '{server}/bb.png' is a URL; add --fetch 127.0.0.1 to fetch" in error) == (2, True)
    assert not Images.asked
    code, said, error = convert(capsys, "generic", tmp_path / "out", "--table", path, "--fetch", "127.0.0.1")
    assert code == 0, error
    assert f"missing_image: t.csv row 4: '{server}/gone.png' cannot be fetched: HTTP Error 404: Not Found" in said
    assert records(tmp_path / "out/train").keys() == {"a-bb", "aa-bbb", "aaa-bbbb"}
    asked = Images.asked.total()
    again = convert(capsys, "generic", tmp_path / "out", "--table", path, "--fetch", "127.0.0.1")
    assert again == (0, said, error)
    assert Images.asked.total() == asked, "a finished split is left alone"

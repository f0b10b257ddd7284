"""The local page: a pair is dropped in and a caption appears, in a real browser; everybody else is refused."""

import base64
import http.client
import json
import threading
from pathlib import Path

import pytest
import torch
from browser import Browser
from models import tiny_config, tiny_model
from PIL import Image
from streams import tokenizer

from onediff.config.data import PromptConfig
from onediff.errors import UserError
from onediff.evaluation.captioner import Captioner
from onediff.model.saved import save_model
from onediff.serving.server import PageServer


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    folder = tmp_path_factory.mktemp("model") / "saved"
    save_model(tiny_model(), tiny_config(), PromptConfig(), tokenizer(), folder, {})
    torch.set_num_threads(1)
    return Captioner(folder, "cpu")


@pytest.fixture
def server(captioner: Captioner):
    with PageServer(captioner, 0, max_bytes=500_000) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for name, size, colour in (("before.png", (90, 60), "red"), ("after.tiff", (70, 80), "blue")):
        Image.new("RGB", size, colour).save(folder / name)
    return [folder / "before.png", folder / "after.tiff"]


def asked(server: PageServer, body: bytes | None = None, method: str = "POST", path: str = "/caption", **headers: str):
    """Status and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def encoded(images: list[Path]) -> bytes:
    texts = (base64.b64encode(path.read_bytes()).decode() for path in images)
    return json.dumps(dict(zip(("before", "after"), texts, strict=True))).encode()


def test_a_dropped_pair_gets_its_caption_and_heat_map_and_no_request_leaves(server, captioner, images, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(server.address)
        browser.drop("#before", images[0])
        browser.wait("document.querySelector('#before').classList.contains('full')")
        browser.drop("#after", images[1])
        browser.wait("document.getElementById('time').textContent")
        assert browser.run("document.getElementById('caption').textContent") == captioner.caption(*images)
        # Not every browser shows a TIFF: the page gets images back that it can show, and a map as large as each.
        sizes = "[...document.querySelectorAll('img')].map(i => [i.naturalWidth, i.naturalHeight])"
        assert browser.run(sizes) == [[90, 60], [90, 60], [70, 80], [70, 80]]
        assert browser.run("getComputedStyle(document.querySelector('.heat')).display") == "block"
        browser.run("document.getElementById('heat').click()")
        assert browser.run("getComputedStyle(document.querySelector('.heat')).display") == "none"
        text = tmp_path / "no-image.png"
        text.write_text("no image")
        browser.drop("#after", text)
        browser.wait("document.getElementById('caption').textContent.includes('not an image')")
        assert sum(url.endswith("/caption") for url in browser.requests) == 2
        assert browser.outside() == []


def test_it_answers_this_machine_and_this_page_only(server, images):
    body = encoded(images)
    assert server.server_address[0] == "127.0.0.1"
    status, text = asked(server, body)
    assert status == 200 and set(json.loads(text)) == {"caption", "seconds", "images", "heat"}
    assert asked(server, body, Origin=server.address.rstrip("/"))[0] == 200
    assert asked(server, body, Origin="http://elsewhere.example")[0] == 403
    assert asked(server, body, Host="elsewhere.example")[0] == 403
    assert asked(server, method="GET", path="/etc/passwd")[0] == 404


def test_a_bad_request_is_one_clear_line(server, images):
    status, text = asked(server, b"x" * 500_001)
    assert status == 413 and "larger than 0.5 MB" in text
    for body, said in ((b"[]", "before: missing"), (b'{"before": "eA=="}', "before: not an image")):
        status, text = asked(server, body)
        assert status == 400 and said in json.loads(text)["error"]
    assert asked(server, encoded(images))[0] == 200


def test_a_taken_port_is_said(server, captioner):
    with pytest.raises(UserError, match=f"--port {server.server_port}: Address already in use"):
        PageServer(captioner, server.server_port)

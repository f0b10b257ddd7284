"""The page in a real browser, and the OpenAI-compatible endpoint under load."""

import base64
import http.client
import json
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
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
from onediff.serving.server import CaptionServer


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    folder = tmp_path_factory.mktemp("model") / "saved"
    save_model(tiny_model(), tiny_config(), PromptConfig(), tokenizer(), folder, {})
    torch.set_num_threads(1)
    return Captioner(folder, "cpu")


@pytest.fixture
def server(captioner: Captioner):
    with CaptionServer(captioner, 0, max_bytes=500_000) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for name, size, colour in (("before.png", (90, 60), "red"), ("after.tiff", (70, 80), "blue")):
        Image.new("RGB", size, colour).save(folder / name)
    return [folder / "before.png", folder / "after.tiff"]


def asked(
    server: CaptionServer, body: bytes | None = None, method: str = "POST", path: str = "/caption", **headers: str
):
    """Status and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def encoded(images: list[Path]) -> bytes:
    texts = (base64.b64encode(path.read_bytes()).decode() for path in images)
    return json.dumps(dict(zip(("before", "after"), texts, strict=True))).encode()


def test_a_dropped_pair_gets_its_caption_and_attention_maps_and_no_request_leaves(server, captioner, images, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(server.address)
        browser.drop("#before", images[0])
        browser.wait("document.querySelector('#before').classList.contains('full')")
        browser.drop("#after", images[1])
        browser.wait("document.querySelectorAll('#results li').length == 1")
        assert browser.run("document.getElementById('caption').textContent") == captioner.caption(*images)
        # Labels stay, and the maps are beside the images, as large as each: not every browser shows a TIFF.
        assert browser.run("[...document.querySelectorAll('main > .two h2')].map(h => h.innerText)") == [
            "Before",
            "After",
        ]
        sizes = "[...document.querySelectorAll('li .image, li .map')].map(i => [i.naturalWidth, i.naturalHeight])"
        assert browser.wait(f"(s => s.every(z => z[0]) && s)({sizes})") == [[90, 60], [70, 80], [90, 60], [70, 80]]
        browser.run("document.querySelectorAll('li details')[1].open = true")
        browser.run("(s => { s.value = 20; s.dispatchEvent(new Event('input')) })(document.querySelector('li input'))")
        assert "20%" in browser.run("document.querySelectorAll('li .wipe div')[1].style.clipPath")
        # All images of a result are zoomed together, so before and after stay aligned.
        browser.run("document.querySelector('li .in').click(); document.querySelector('li .left').click()")
        shown = "[...document.querySelectorAll('li .zoomed img')].map(i => getComputedStyle(i).transform)"
        assert set(browser.run(shown)) == {"matrix(1.5, 0, 0, 1.5, 0, 0)"}
        shown = "[...document.querySelectorAll('li')].map(i => i.style.getPropertyValue('--x'))"
        assert [round(float(x.rstrip("%"))) for x in browser.run(shown)] == [33]
        # A link brings the pair back, in another window too.
        browser.run("document.querySelector('li .keep').click()")
        link = browser.wait("document.querySelector('li .link').getAttribute('href')")
        with Browser(tmp_path / "other") as other:
            other.open(server.address + link)
            other.wait("document.querySelectorAll('#results li').length == 1")
            assert other.run("document.getElementById('caption').textContent") == captioner.caption(*images)
            other.open(server.address + "#nothing")
            other.wait("document.getElementById('caption').textContent.includes('no longer here')")
        # A second pair goes above the first; this one by the keyboard.
        browser.run("document.getElementById('swap').focus()")
        for kind in ("keyDown", "keyUp"):
            browser.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )
        browser.wait("document.querySelectorAll('#results li').length == 2")
        assert browser.run("document.querySelector('li .said').textContent").startswith(
            captioner.caption(*images[::-1])
        )
        for scheme in ("light", "dark"):
            browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            assert violations(browser) == []
        text = tmp_path / "no-image.png"
        text.write_text("no image")
        browser.drop("#after", text)
        browser.wait("document.getElementById('caption').textContent.includes('not an image')")
        assert sum(url.endswith("/caption") for url in browser.requests) == 3
        assert browser.outside() == []


def violations(browser: Browser) -> list[str]:
    """What axe-core finds wrong with the page for people who use a screen reader or a keyboard, or see little contrast."""
    import axe_core_python

    browser.run((Path(axe_core_python.__file__).parent / "axe.min.js").read_text() + "; 1")
    found = browser.run("axe.run().then(r => r.violations.map(v => v.id + ' ' + v.nodes.map(n => n.html).join()))")
    assert isinstance(found, list)
    return found


def test_it_answers_this_machine_and_this_page_only(server, images):
    body = encoded(images)
    assert server.server_address[0] == "127.0.0.1"
    status, text = asked(server, body)
    assert status == 200
    assert set(json.loads(text)) == {
        "caption",
        "confidence",
        "warning",
        "instead_of",
        "seconds",
        "images",
        "attention",
    }
    assert asked(server, body, Origin=server.address.rstrip("/"))[0] == 200
    assert asked(server, body, Origin="http://elsewhere.example")[0] == 403
    assert asked(server, body, Host="elsewhere.example")[0] == 403
    assert asked(server, method="GET", path="/etc/passwd")[0] == 404
    assert asked(server, method="GET", path="/kept/nothing")[0] == 404
    assert asked(server, b'{"before": "eA==", "after": "eA=="}', path="/keep")[0] == 400


def test_a_bad_request_is_one_clear_line(server, images):
    status, text = asked(server, b"x" * 500_001)
    assert status == 413 and "larger than 0.5 MB" in text
    # More than sockets buffer: a client that is cut off while it sends sees a broken connection instead of the answer.
    status, text = asked(server, b"x" * 30_000_000)
    assert status == 413 and "larger than 0.5 MB" in text
    for body, said in ((b"[]", "before: missing"), (b'{"before": "eA==", "after": "eA=="}', "before: not an image")):
        status, text = asked(server, body)
        assert status == 400 and said in json.loads(text)["error"]
    assert asked(server, encoded(images))[0] == 200


def test_what_is_no_request_is_refused_and_who_leaves_is_not_missed(server, images, capfd):
    assert asked(server, b"{}", method="PUT") == (405, '{"error": "Unsupported method (\'PUT\')"}')
    assert asked(server, method="HEAD", path="/health") == (200, "")
    body = question(images)
    for start in (b"no HTTP at all\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\n"):
        with socket.create_connection(server.server_address) as client:
            head = b"Host: 127.0.0.1:%d\r\nContent-Length: %d\r\n\r\n" % (server.server_port, len(body))
            client.sendall(start + head + body)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
    assert asked(server, body, path="/v1/chat/completions")[0] == 200
    assert 500 not in server.statuses and capfd.readouterr().err == ""


def test_bodies_of_requests_take_bounded_memory(server, images):
    with server.room.of(server.room.most_bytes - 10):
        status, text = asked(server, encoded(images))
        assert status == 503 and "are being answered; try again later" in text
    assert asked(server, encoded(images))[0] == 200


def test_a_taken_port_and_a_host_that_is_none_are_said(server, captioner):
    with pytest.raises(UserError, match="--host no such host: "):
        CaptionServer(captioner, 0, host="no such host")
    with pytest.raises(UserError, match=f"--port {server.server_port}: Address already in use"):
        CaptionServer(captioner, server.server_port)


def question(images: list[Path], text: str = "", **more: object) -> bytes:
    """A chat completion about two images."""
    urls = ["data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in images]
    content: list[dict] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content += [{"type": "text", "text": text}] if text else []
    return json.dumps({"model": "onediff", "messages": [{"role": "user", "content": content}], **more}).encode()


def test_two_hundred_at_once_are_answered_in_batches_and_only_bad_ones_refused(server, captioner, images):
    """Every fourth request is bad in one of several ways; what the good ones get is what `caption` says."""
    good, chat = captioner.caption(*images, max_new_tokens=12), "/v1/chat/completions"
    bad = [
        *(b"not json", b"{}", question(images[:1]), question(images, n=2), question(images, temperature=1)),
        *(question(images, max_tokens=0), question([*images, images[0]]), b'{"messages": [{"role": "system"}]}'),
        question(images).replace(b"data:image/png;base64,", b"http://elsewhere.example/"),
        question(images).replace(b"base64,", b"base64,AAAA"),
        *(question(images, text="very " * 1000), question(images, text="\ud800")),
    ]
    wanted = question(images, max_tokens=12, max_completion_tokens=None)
    bodies = [bad[number // 4 % len(bad)] if number % 4 == 0 else wanted for number in range(200)]
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda body: asked(server, body, path=chat), bodies))
    for number, (status, text) in enumerate(answers):
        if number % 4 == 0:
            assert status == 400 and json.loads(text)["error"]["message"], text
        else:
            assert status == 200 and json.loads(text)["choices"][0]["message"]["content"] == good
    status, text = asked(server, method="GET", path="/metrics")
    told = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert told["onediff_captions_total"] == "150" and int(told["onediff_batches_total"]) < 100
    assert told['onediff_requests_total{status="400"}'] == "50" and told["onediff_waiting"] == "0"


def test_openais_own_client_gets_a_caption_whole_or_as_a_stream(server, captioner, images):
    from openai import OpenAI

    server.api_key = "secret"
    assert asked(server, question(images), path="/v1/chat/completions")[0] == 401
    client = OpenAI(base_url=f"{server.address}v1", api_key="secret")
    assert [model.id for model in client.models.list()] == ["onediff"]
    given = json.loads(question(images))
    whole = client.chat.completions.create(**given)
    assert whole.choices[0].message.content == captioner.caption(*images)
    pieces = client.chat.completions.create(**given, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == captioner.caption(*images)


def test_more_than_may_wait_are_told_to_come_again(captioner, images):
    with CaptionServer(captioner, 0, max_waiting=1, max_batch=1) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with ThreadPoolExecutor(30) as pool:
            body = question(images)
            statuses = {
                status for status, _ in pool.map(lambda _: asked(made, body, path="/v1/chat/completions"), range(30))
            }
        made.shutdown()
    assert statuses == {200, 503}

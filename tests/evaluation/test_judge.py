"""The judge asks a real HTTP server that speaks the chat protocol; here a rule answers in place of a model."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from onediff.cli import main
from onediff.errors import UserError
from onediff.evaluation.judge import Judge, Verdict, question, verdict

REFERENCES = {"1": ["the {car} is gone"], "2": ["a dog has appeared"], "3": ["nothing has changed"]}
PREDICTIONS = {"1": "the car is gone", "2": "a cat has appeared", "3": "wrong"}


class Endpoint(http.server.ThreadingHTTPServer):
    """Marks a caption by one word of it; the number of questions is what the tests look at."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict] = []
        self.status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**body, "path": self.path, "key": self.headers["Authorization"]})
        caption = body["messages"][0]["content"].split("Caption to judge:\n")[1].split("\n")[0]
        marks = '{"correctness": 4, "completeness": 2}' if "gone" in caption else '{"correctness":0,"completeness":0}'
        if "cat" in caption and self.server.status != 200:
            self.send_error(self.server.status)
            return
        answer = json.dumps({"choices": [{"message": {"content": f"Sure:\n```json\n{marks}\n```"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def test_marks_are_cached_by_model_and_prompt(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = Judge(endpoint.address, "some-model", tmp_path / "cache.jsonl", key="secret")
    found = dict(judge.judge(REFERENCES, PREDICTIONS))
    assert found == {"1": Verdict(1.0, 0.5), "2": Verdict(0, 0), "3": Verdict(0, 0)}
    assert len(endpoint.asked) == 3
    assert {(one["path"], one["key"], one["temperature"]) for one in endpoint.asked} == {
        ("/v1/chat/completions", "Bearer secret", 0)
    }
    assert "secret" not in (tmp_path / "cache.jsonl").read_text()
    assert dict(judge.judge(REFERENCES, PREDICTIONS)) == found
    assert len(endpoint.asked) == 3
    dict(Judge(endpoint.address, "another", tmp_path / "cache.jsonl").judge(REFERENCES, PREDICTIONS))
    assert len(endpoint.asked) == 6


def test_a_broken_run_goes_on_where_it_stopped(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = Judge(endpoint.address, "some-model", tmp_path / "cache.jsonl", at_once=1)
    endpoint.status = 503
    with pytest.raises(UserError, match="answered 503"):
        dict(judge.judge(REFERENCES, PREDICTIONS))
    kept = (tmp_path / "cache.jsonl").read_text()
    (tmp_path / "cache.jsonl").write_text(kept + '{"key": "cut of')
    endpoint.status = 200
    endpoint.asked.clear()
    assert set(dict(judge.judge(REFERENCES, PREDICTIONS))) == {"1", "2", "3"}
    assert len(endpoint.asked) == 3 - kept.count("\n")
    endpoint.asked.clear()
    assert set(dict(judge.judge(REFERENCES, PREDICTIONS))) == {"1", "2", "3"}
    assert not endpoint.asked


def test_command_keeps_marks_apart_from_scores(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rows in (("ref", REFERENCES), ("pred", PREDICTIONS)):
        word = "captions" if name == "ref" else "caption"
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"id": i, word: c}) + "\n" for i, c in rows.items()))
    words = [
        "judge",
        "--references",
        f"{tmp_path}/ref.jsonl",
        "--predictions",
        f"{tmp_path}/pred.jsonl",
        "--model",
        "m",
    ]
    words += ["--cache", f"{tmp_path}/cache.jsonl", "--json", f"{tmp_path}/marks.json"]
    assert main([*words, "--endpoint", endpoint.address]) == 0
    assert "correctness   0.333" in capsys.readouterr().out
    result = json.loads((tmp_path / "marks.json").read_text())
    assert result["marks"]["completeness"] == pytest.approx(1 / 6)
    assert "scores" not in result
    assert main([*words, "--endpoint", "127.0.0.1"]) == 2
    assert "expected http:// or https://" in capsys.readouterr().err


def test_nobody_there_is_one_clear_line(tmp_path: Path) -> None:
    judge = Judge("http://127.0.0.1:9/v1", "m", tmp_path / "cache.jsonl")
    with pytest.raises(UserError, match="no usable answer"):
        dict(judge.judge(REFERENCES, PREDICTIONS))


def test_prompt_and_answers() -> None:
    asked = question(["the {caption} one", "two\nlines"], "{references}")
    assert "- the {caption} one\n- two lines" in asked
    assert "Caption to judge:\n{references}\n" in asked
    assert verdict('{"correctness": 3, "completeness": 4}') == Verdict(0.75, 1)
    for answer in ("fine", '{"correctness": 5, "completeness": 1}', '{"correctness": "4", "completeness": 1}'):
        with pytest.raises(ValueError, match="no two marks"):
            verdict(answer)

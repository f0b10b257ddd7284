"""data_prep.captioning against a real HTTP server that misbehaves."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from raw_data import put

from data_prep.captioning.answers import clean, fault_of
from onediff.cli import main
from onediff.errors import UserError
from onediff.llm import Asker, Cache


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers `echo: <last line of the question>`; `faults` are used up first, one a request, whoever asks."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.answer = "the car in the corner is gone now"
        self.finish_reason = "stop"
        self.times: list[float] = []
        self.answered: Counter[str] = Counter()
        self.delay = 0.0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        with self.server.lock:
            self.server.times.append(time.monotonic())
            fault = self.server.faults.pop(0) if self.server.faults else ""
        time.sleep(self.server.delay)
        if fault.isdigit():
            return self.reply(int(fault), b'{"error": {"message": "not now"}}', {"Retry-After": "0.2"})
        if fault == "slow":
            time.sleep(1.5)
        message = {"role": "assistant", "content": self.server.answer}
        choice = {"index": 0, "finish_reason": self.server.finish_reason, "message": message}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        if fault == "no choices":
            answer["choices"] = []
        text = json.dumps(answer).encode()
        if fault == "half":
            return self.reply(200, text[: len(text) // 2], {})
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return None
        if not fault:
            with self.server.lock:
                self.server.answered[question] += 1
        return self.reply(200, text, {})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        try:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except BrokenPipeError:
            return  # The client gave up waiting, as it should.

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asker(endpoint: Endpoint, cache: Path, **options: object) -> Asker:
    return Asker(Cache(cache), "m", endpoint.url, **{"first_pause": 0.02, "timeout": 1.0, **options})


QUESTIONS = [f"question {n}" for n in range(20)]


def test_nothing_is_lost_and_nothing_asked_twice(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults = ["429", "500", "503", "half", "slow", "no choices", "drop", "429", "500"]
    first = asker(endpoint, tmp_path / "a.jsonl", concurrency=4)
    answers = dict(first.ask_all([*QUESTIONS, *QUESTIONS]))
    assert set(answers) == set(QUESTIONS)
    assert all(record and record["answer"] == endpoint.answer for record in answers.values())
    assert endpoint.answered == dict.fromkeys(QUESTIONS, 1)
    assert first.counts["asked"] == 20
    assert first.counts["retried after status 429"] == 2
    assert sum(number for what, number in first.counts.items() if what.startswith("retried")) == 9
    before = len(endpoint.times)
    again = asker(endpoint, tmp_path / "a.jsonl")
    assert dict(again.ask_all(QUESTIONS)) == answers
    assert len(endpoint.times) == before
    assert again.counts == {"from cache": 20}


def test_the_rate_is_held(endpoint: Endpoint, tmp_path: Path) -> None:
    began = time.monotonic()
    list(asker(endpoint, tmp_path / "a.jsonl", concurrency=8, per_minute=1200).ask_all(QUESTIONS))
    # From the beginning, since a busy machine may hold the first request up and not the next.
    for number, moment in enumerate(endpoint.times):
        assert moment - began >= number * 0.05 - 0.01


def test_a_429_makes_everybody_wait(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults = ["429"]
    list(asker(endpoint, tmp_path / "a.jsonl", concurrency=1).ask_all(QUESTIONS[:3]))
    assert endpoint.times[1] - endpoint.times[0] >= 0.2


def test_a_question_that_always_fails_is_not_kept(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults = ["500"] * 3
    one = asker(endpoint, tmp_path / "a.jsonl", attempts=3, concurrency=1)
    assert list(one.ask_all(QUESTIONS[:1])) == [(QUESTIONS[0], None)]
    assert one.counts["failed"] == 1
    assert dict(asker(endpoint, tmp_path / "a.jsonl").ask_all(QUESTIONS[:1]))[QUESTIONS[0]]


def test_a_refused_request_is_one_clear_line(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults = ["401"] * 50
    with pytest.raises(UserError, match=r"m: the endpoint refuses the request \(401\): .*not now"):
        list(asker(endpoint, tmp_path / "a.jsonl").ask_all(QUESTIONS))
    assert len(endpoint.times) < 30


def test_a_cache_cut_by_a_kill_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    cache = Cache(path)
    for n in range(3):
        cache.put(f"k{n}", "é", 1, 1)
    cache.close()
    path.write_bytes(path.read_bytes()[:-4])
    cache = Cache(path)
    assert len(cache) == 2
    cache.put("k9", "x", 1, 1)
    cache.close()
    assert Cache(path).get("k9")["answer"] == "x"
    assert len(Cache(path)) == 3


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("The dog is now brown.", None),
        ("", "empty"),
        ("Changed.", "too_short"),
        ("word " * 80, "too_long"),
        ("I'm sorry, but I cannot see images.", "refusal"),
        ("As an AI language model I see nothing", "refusal"),
        ("The second caption adds a dog.", "mentions_captions"),
        ("Unlike the instruction, it is red", "mentions_captions"),
    ],
)
def test_answers_that_cannot_be_captions(answer: str, fault: str | None) -> None:
    assert fault_of(clean(answer)) == fault
    assert clean(' "The dog\n left" ') == "The dog left"


def pairs(folder: Path, count: int) -> Path:
    rows = [
        {
            "before": f"{n}a.png",
            "after": f"{n}b.png",
            "caption": "x",
            "caption_before": f"scene {n}",
            "edit": "add a dog",
        }
        for n in range(count)
    ]
    for row in rows:
        row["caption_after"] = row["caption_before"] + " with a dog"
    return put(folder / "pairs.jsonl", "\n".join(map(json.dumps, rows)))


def words(table: Path, endpoint: Endpoint, out: Path, *more: str) -> list[str]:
    head = ["data", "caption", "generic", "--table", str(table), "--out", str(out)]
    return [*head, "--model", "m", "--base-url", endpoint.url, *more]


def test_the_command_writes_a_table_and_keeps_rejected_answers_apart(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = pairs(tmp_path, 5), tmp_path / "out.jsonl"
    prices = ("--price-in", "100000", "--price-out", "0")
    assert main(words(table, endpoint, out, *prices)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{out}: 5 pairs, 5 captioned, 0 rejected, 0 failed"
    assert said[-1] == "  tokens: 50 in, 25 out; cost 5.00 (all runs)"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["before"] for row in rows] == [f"{n}a.png" for n in range(5)]
    assert rows[0]["captions"] == [endpoint.answer]
    endpoint.answer = "I'm sorry, I cannot."
    assert main(words(table, endpoint, tmp_path / "o2.jsonl")) == 0
    assert "  rejected: refusal: 5" in capsys.readouterr().out.splitlines()
    assert (tmp_path / "o2.jsonl").read_text() == ""
    assert json.loads((tmp_path / "o2.jsonl.rejected.jsonl").read_text().splitlines()[0])["rejected"] == "refusal"
    endpoint.answer, endpoint.finish_reason = "the car that stood in the corner of the", "length"
    for _ in range(2):  # the second time from the cache
        assert main(words(table, endpoint, tmp_path / "o3.jsonl")) == 0
        assert "  rejected: cut_off: 5" in capsys.readouterr().out.splitlines()
    assert endpoint.answered.total() == 15


def test_incomplete_edits_are_left_out_and_images_inside_a_table_are_refused_before_anything_is_asked(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0000001", "0000002"):
        put(
            tmp_path / "raw" / name / "prompt.json",
            json.dumps({"edit": f"make it {name}", "input": "a", "output": "b"}),
        )
    put(tmp_path / "raw/0000002/metadata.jsonl", '{"seed": 7}\n')
    head = [
        "data",
        "caption",
        "instruct-pix2pix",
        "--images",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "o.jsonl"),
    ]
    assert main([*head, "--model", "m", "--base-url", endpoint.url]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{tmp_path / 'o.jsonl'}: 2 pairs, 1 captioned, 1 rejected, 0 failed"
    assert "  rejected: incomplete: 1" in said
    (line,) = (tmp_path / "o.jsonl.rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "0000001" and "metadata.jsonl" in json.loads(line)["reason"]

    columns = {"before": [b"\x89PNG"], "after": [b"\x89PNG"], "edit": ["add a dog"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert main(words(tmp_path / "p.parquet", endpoint, tmp_path / "p.jsonl")) == 2
    assert "p.parquet row 1: its images are inside the table" in capsys.readouterr().err
    assert endpoint.answered.total() == 1


def test_a_prompt_that_asks_for_what_is_not_there(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = put(tmp_path / "p.txt", "What of {weather}?")
    assert main(words(pairs(tmp_path, 1), endpoint, tmp_path / "o.jsonl", "--prompt", str(prompt))) == 2
    error = capsys.readouterr().err
    assert "pairs.jsonl row 1: the prompt asks for 'weather', but the row has caption, caption_after" in error
    assert main(words(pairs(tmp_path, 1), endpoint, tmp_path / "o.jsonl", "--prompt", "nope")) == 2
    assert "--prompt 'nope': neither a file nor one of edit, pair" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_and_asks_nothing_twice(
    endpoint: Endpoint, tmp_path: Path, how: signal.Signals
) -> None:
    table, out = pairs(tmp_path, 40), tmp_path / "out.jsonl"
    endpoint.delay = 0.05
    environment = {**os.environ, "OPENAI_API_KEY": "none", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "onediff", *words(table, endpoint, out, "--concurrency", "2")]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 300
        while sum(endpoint.answered.values()) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.send_signal(how)
    error = child.communicate(timeout=300)[1].decode()
    if how == signal.SIGINT:
        assert child.returncode == 130, error
        assert error.endswith("onediff: interrupted\n")
    assert not out.exists()
    asked_before = sum(endpoint.answered.values())
    assert asked_before < 40
    endpoint.delay = 0
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    assert len(out.read_text().splitlines()) == 40
    twice = [question for question, times in endpoint.answered.items() if times > 1]
    # What was under way when the process was killed cannot be known to have been answered.
    assert len(twice) <= (2 if how == signal.SIGKILL else 0)
    assert len(endpoint.answered) == 40

"""The judge asks a real HTTP server that speaks the chat protocol. Here rules answer in place of a model: what is proven is
what is asked, kept and computed, not that any model judges well. For that there are the controls of the command itself."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onediff.cli import main
from onediff.errors import UserError
from onediff.evaluation.files import References
from onediff.evaluation.judge import claims, marks
from onediff.evaluation.judge.marks import Marks, marked
from onediff.llm import Asker, Cache

REFERENCES = {"1": ["the {car} is gone"], "2": ["a dog has appeared"], "3": ["nothing has changed"]}
PREDICTIONS = {"1": "the car is gone", "2": "a cat has appeared", "3": "wrong"}


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers every kind of question by rule, with words around the JSON as models have them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**body, "path": self.path, "key": self.headers["Authorization"]})
        question = body["messages"][0]["content"]
        if "cat" in question and self.server.status != 200:
            self.send_error(self.server.status)
            return
        message = {"role": "assistant", "content": f"Sure:\n```json\n{by_rule(question)}\n```"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def by_rule(question: str) -> str:
    """Two marks, a list of changes, or the claims of a caption: two texts tell the same if two content words agree."""
    if "Caption to judge:" in question:
        caption = question.split("Caption to judge:\n")[1].split("\n")[0]
        return '{"correctness": 4, "completeness": 2}' if "gone" in caption else '{"correctness":0,"completeness":0}'
    if "Descriptions:" in question:
        lines = re.findall(r"(?m)^- (.*)$", question)
        return json.dumps({"changes": list(dict.fromkeys(c for line in lines for c in told(line)))})
    changes = re.findall(r"(?m)^\d+\. (.*)$", question)
    found = []
    for claim in told(question.split("Description to judge:\n")[1].split("\n")[0]):
        same = [n for n, change in enumerate(changes, start=1) if len(content(claim) & content(change)) >= 2]
        found.append({"claim": claim, "change": same[0] if same else 0})
    return json.dumps({"claims": found})


def told(text: str) -> list[str]:
    return [] if "nothing has changed" in text else text.split(" and ")


def content(text: str) -> set[str]:
    text = text.replace("remove:", "gone").replace("add:", "appeared")
    return set(re.findall(r"\w+", text)) - {"the", "a", "an", "is", "has", "at", "on"}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def asker(endpoint: Endpoint, cache: Path, model: str = "some-model", **options: Any) -> Asker:
    return Asker(
        Cache(cache), model, endpoint.address, **{"first_pause": 0.01, "attempts": 2, "key": "secret", **options}
    )


def files(folder: Path, references: list[dict[str, Any]], predictions: dict[str, str]) -> list[str]:
    """The arguments of a command about these."""
    (folder / "ref.jsonl").write_text("".join(json.dumps(row) + "\n" for row in references))
    (folder / "pred.jsonl").write_text(
        "".join(json.dumps({"id": i, "caption": c}) + "\n" for i, c in predictions.items())
    )
    names = {"references": "ref.jsonl", "predictions": "pred.jsonl", "cache": "cache.jsonl", "out": "out.json"}
    return [
        "judge",
        *(word for name, file in names.items() for word in (f"--{name}", f"{folder}/{file}")),
        "--model",
        "m",
    ]


def test_marks_are_cached_by_model_and_prompt(endpoint: Endpoint, tmp_path: Path) -> None:
    first = asker(endpoint, tmp_path / "cache.jsonl")
    found = dict(marked(first, REFERENCES, PREDICTIONS))
    assert found == {"1": Marks(1.0, 0.5), "2": Marks(0, 0), "3": Marks(0, 0)}
    assert {(one["path"], one["key"], one["temperature"]) for one in endpoint.asked} == {
        ("/v1/chat/completions", "Bearer secret", 0)
    }
    assert "secret" not in (tmp_path / "cache.jsonl").read_text()
    assert dict(marked(asker(endpoint, tmp_path / "cache.jsonl"), REFERENCES, PREDICTIONS)) == found
    assert len(endpoint.asked) == 3
    dict(marked(asker(endpoint, tmp_path / "cache.jsonl", "another"), REFERENCES, PREDICTIONS))
    assert len(endpoint.asked) == 6


def test_what_got_no_answer_is_left_out_and_asked_again(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = files(tmp_path, [{"id": i, "captions": c} for i, c in REFERENCES.items()], PREDICTIONS)
    words += ["--endpoint", endpoint.address, "--attempts", "1"]
    endpoint.status = 503
    assert main(words) == 1
    assert (
        "2 pairs judged by m, 1 without a usable answer: run the command again to ask for them"
        in capsys.readouterr().out
    )
    with (tmp_path / "cache.jsonl").open("a") as file:
        file.write('{"key": "cut of')
    endpoint.status = 200
    endpoint.asked.clear()
    assert main(words) == 0
    assert len(endpoint.asked) == 1
    assert "correctness   0.333" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["marks"]["completeness"] == pytest.approx(1 / 6)
    assert "scores" not in result
    assert main([*words, "--endpoint", "127.0.0.1"]) == 2
    assert "expected http:// or https://" in capsys.readouterr().err


SCENE = {
    "before": [
        {"number": 0, "size": "small", "colour": "red", "material": "matte", "shape": "cube", "place": "top left"},
        {"number": 1, "size": "large", "colour": "blue", "material": "matte", "shape": "cone", "place": "right"},
    ],
    "after": [{"number": 1, "size": "large", "colour": "blue", "material": "matte", "shape": "cone", "place": "right"}],
    "changes": [{"type": "remove", "before": [0], "after": []}],
}
ROWS = [
    {"id": "known", "captions": ["the red cube is gone"], "change_type": "remove", "meta": SCENE},
    {"id": "free", "captions": ["a white car has appeared and the old man is gone", "the old man is gone"]},
    {"id": "other", "captions": ["two green boats have appeared"]},
    {"id": "same", "captions": ["nothing has changed"], "change_type": "none"},
    {"id": "calm", "captions": ["nothing has changed"], "change_type": "none"},
]
SAID = {
    "known": "the red cube is gone",
    "free": "the old man is gone and a yellow bird has landed",
    "other": "nothing has changed",
    "same": "nothing has changed",
    "calm": "a black dog has appeared",
}


def test_claims_are_held_against_the_true_changes(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*files(tmp_path, ROWS, SAID), "--items", "--endpoint", endpoint.address, "--controls", "2"]
    assert main(words) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["per_pair"]["free"] == {
        "changes": ["a white car has appeared", "the old man is gone"],
        "claims": [["the old man is gone", 2], ["a yellow bird has landed", 0]],
    }
    assert result["per_pair"]["known"]["changes"] == ["remove: small red matte cube (top left)"]
    # Right: known and same. Told: 2 of 4 changes. Invented: the bird and the dog, of 4 claims. Alarms: 1 of 2.
    assert result["scores"] == {
        "captions right": 0.4, "change recall": 0.5, "invented claims": 0.5, "false alarms": 0.5,
    }  # fmt: skip
    assert set(result["intervals"]) == set(result["scores"])
    out = capsys.readouterr().out
    assert "captions right     40.0" in out
    assert "control: of 2 captions known to be right, 2 judged right" in out
    assert "control: of 2 captions known to be wrong, 0 judged right" in out
    asked = len(endpoint.asked)
    assert main(words) == 0
    assert len(endpoint.asked) == asked, "everything is in the cache"
    changes_asked = [one for one in endpoint.asked if "Descriptions:" in one["messages"][0]["content"]]
    assert len(changes_asked) == 2, "changes that are known are not asked for"


def test_a_judge_that_calls_everything_right_is_found_out_by_the_controls(endpoint: Endpoint) -> None:
    given = References(
        {row["id"]: row["captions"] for row in ROWS}, {}, {row["id"]: row["meta"] for row in ROWS if "meta" in row}
    )
    changes = {"known": ("a",), "free": ("b", "c"), "other": ("d",), "same": ()}
    found = claims.controls(given, changes, 10)
    assert found["right"] == {"known": ROWS[0]["captions"][0], "other": ROWS[2]["captions"][0]}
    assert set(found["wrong"]) == {"known", "free", "other"}
    assert "nothing has changed" in found["wrong"].values()
    for pair, caption in found["wrong"].items():
        assert caption not in given.captions[pair]


def test_nobody_there_is_counted_and_a_refusal_is_one_line(endpoint: Endpoint, tmp_path: Path) -> None:
    nobody = Asker(Cache(tmp_path / "a.jsonl"), "m", "http://127.0.0.1:9/v1", key="k", attempts=1)
    assert set(dict(marked(nobody, REFERENCES, PREDICTIONS)).values()) == {None}
    endpoint.status = 401
    with pytest.raises(UserError, match=r"some-model: the endpoint refuses the request \(401\)"):
        dict(marked(asker(endpoint, tmp_path / "b.jsonl"), REFERENCES, PREDICTIONS))


def test_prompts_and_answers() -> None:
    asked = marks.question(["the {caption} one", "two\nlines"], "{references}")
    assert "- the {caption} one\n- two lines" in asked
    assert "Caption to judge:\n{references}\n" in asked
    assert marks.read('{"correctness": 3, "completeness": 4}') == Marks(0.75, 1)
    for answer in ("fine", '{"correctness": 5, "completeness": 1}', '{"correctness": "4", "completeness": 1}'):
        with pytest.raises(ValueError, match="no two marks"):
            marks.read(answer)
    assert "1. the {x} is gone\n\nDescription to judge:\n(nothing)" in claims.question(["the {x}\nis gone"], " ")
    assert claims.read_claims('so {"claims": [{"claim": "a", "change": 3}, {"claim": "b", "change": null}]}', 2) == (
        ("a", 0),
        ("b", 0),
    )
    for answer in ("none", '{"claims": "x"}', '{"claims": [1]}', '{"claims": [{"claim": "a", "change": -1}]}'):
        with pytest.raises(ValueError):
            claims.usable(answer)

"""A judge beyond words: a language model behind an OpenAI-compatible endpoint compares captions with references.

Its two marks are a view of their own. They depend on the judging model and on its prompt (`judge_prompt.txt`), so they
never stand in the table of the classic metrics. Every answer is kept in a cache, keyed by model and prompt: a second run
asks for nothing, and a broken one goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from onediff.errors import UserError

PROMPT = Path(__file__).with_name("judge_prompt.txt")
HIGHEST = 4
OBJECT = re.compile(r"\{[^{}]*\}")


class Verdict(NamedTuple):
    """Marks as fractions: 1 is nothing wrong, or nothing left out."""

    correctness: float
    completeness: float


@dataclass(frozen=True)
class Judge:
    """An endpoint, such as `http://127.0.0.1:8000/v1`, and the model to ask there."""

    endpoint: str
    model: str
    cache: Path
    """JSON lines, one for each answer; created where it is missing."""
    key: str | None = None
    """Sent as bearer token; never written anywhere."""
    timeout: float = 60.0
    """Seconds for one answer."""
    at_once: int = 4
    """Questions under way at the same time."""

    def judge(
        self, references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
    ) -> Iterator[tuple[str, Verdict]]:
        """Verdicts as they come: those in the cache first. Raises UserError at the first that cannot be had."""
        if not self.endpoint.startswith(("http://", "https://")):
            raise UserError(f"endpoint {self.endpoint!r}: expected http:// or https://")
        known = dict(self._cached())
        prompts = {pair: question(references[pair], caption) for pair, caption in predictions.items()}
        keys = {pair: self._key(prompt) for pair, prompt in prompts.items()}
        yield from ((pair, known[key]) for pair, key in keys.items() if key in known)
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self.at_once) as pool, self.cache.open("a", encoding="utf-8") as file:
            if self.cache.stat().st_size and not self.cache.read_bytes().endswith(b"\n"):
                file.write("\n")  # ends the line that a killed run left half written
            asked = {pool.submit(self._ask, prompts[pair]): pair for pair in prompts if keys[pair] not in known}
            try:
                for done in as_completed(asked):
                    pair, verdict = asked[done], done.result()
                    file.write(json.dumps({"key": keys[pair], **verdict._asdict()}) + "\n")
                    file.flush()
                    yield pair, verdict
            finally:
                for waiting in asked:
                    waiting.cancel()

    def _ask(self, prompt: str) -> Verdict:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        url = f"{self.endpoint.rstrip('/')}/chat/completions"
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return verdict(json.load(answer)["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            raise UserError(f"{url}: answered {error.code} {error.reason}") from None
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{url}: no usable answer ({error}); what was judged so far is in {self.cache}") from None

    def _cached(self) -> Iterator[tuple[str, Verdict]]:
        if self.cache.is_file():
            for line in self.cache.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    yield entry["key"], Verdict(float(entry["correctness"]), float(entry["completeness"]))
                except (ValueError, KeyError, TypeError):
                    # The last line of a run that was killed while writing; its pair is asked again.
                    continue

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(f"{self.model}\n{prompt}".encode()).hexdigest()


def question(references: Sequence[str], caption: str) -> str:
    """The prompt about one pair."""
    listed = "\n".join(f"- {' '.join(reference.split())}" for reference in references)
    # One pass, so that braces in a caption stay what they are.
    filled = {"{references}": listed, "{caption}": " ".join(caption.split()) or "(nothing)"}
    return re.sub(r"\{references\}|\{caption\}", lambda match: filled[match[0]], PROMPT.read_text(encoding="utf-8"))


def verdict(text: str) -> Verdict:
    """The two marks in a model's answer, whatever stands around the JSON. Raises ValueError."""
    for found in reversed(OBJECT.findall(text)):
        marks = json.loads(found)
        if {"correctness", "completeness"} <= set(marks):
            values = [marks["correctness"], marks["completeness"]]
            if all(isinstance(value, (int, float)) and 0 <= value <= HIGHEST for value in values):
                return Verdict(*(value / HIGHEST for value in values))
    raise ValueError(f"no two marks from 0 to {HIGHEST} in {text[:80]!r}")

"""Asks an OpenAI-compatible endpoint many questions: concurrently, within a rate limit, with retries."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from onediff.errors import UserError
from onediff.llm.cache import Cache, key_of


class Rate:
    """Admits callers evenly at `per_minute`, and nobody during a pause that the server requests."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        with self._lock:
            at = max(self._next, time.monotonic())
            self._next = at + self._gap
        stop.wait(max(0.0, at - time.monotonic()))

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Asker:
    """Asks one model questions. `counts` counts answers, retries by reason, and failures."""

    def __init__(
        self,
        cache: Cache,
        model: str,
        base_url: str | None = None,
        *,
        concurrency: int = 8,
        per_minute: float | None = None,
        attempts: int = 8,
        timeout: float = 60.0,
        first_pause: float = 1.0,
        max_tokens: int = 120,
        key: str | None = None,
        check: Callable[[str], object] | None = None,
    ) -> None:
        """`key` replaces `OPENAI_API_KEY`. `check` raises ValueError for an unusable answer; the question is asked again.

        Raises UserError if the client is not installed or has no key.
        """
        try:
            import openai
        except ImportError as error:
            raise UserError("asking a language model needs the client: pip install openai") from error
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise UserError(f"endpoint {base_url!r}: expected http:// or https://")
        try:
            self._client = openai.OpenAI(base_url=base_url, timeout=timeout, max_retries=0, api_key=key)
        except openai.OpenAIError as error:
            raise UserError(f"{error} (any word will do if the endpoint needs no key)") from error
        self._check = check
        self.cache, self.model, self.counts = cache, model, Counter[str]()
        self._openai, self._rate, self._stop = openai, Rate(per_minute), threading.Event()
        self._attempts, self._first_pause, self._max_tokens = attempts, first_pause, max_tokens
        self._concurrency, self._lock = concurrency, threading.Lock()

    def ask_each(self, questions: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yields `(name, record or None)` for every name in `questions` as answers arrive, like `ask_all`.

        Names with the same question share an answer.
        """
        names: dict[str, list[str]] = {}
        for name, question in questions.items():
            names.setdefault(question, []).append(name)
        for question, record in self.ask_all(names):
            for name in names[question]:
                yield name, record

    def ask_all(self, questions: Iterable[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yields `(question, record or None)` for every distinct question as answers arrive.

        Known answers come from the cache. None means that every attempt failed; it is not cached, so the question is asked
        again next time. Raises UserError if the endpoint refuses all requests.
        """
        different = iter(dict.fromkeys(questions))
        pool = ThreadPoolExecutor(self._concurrency)
        jobs: dict[Future[dict[str, Any] | None], str] = {}
        try:
            exhausted = False
            while jobs or not exhausted:
                while not exhausted and len(jobs) < 2 * self._concurrency:
                    question = next(different, None)
                    if question is None:
                        exhausted = True
                    elif known := self.cache.get(key_of(self.model, question)):
                        self._count("from cache")
                        yield question, known
                    else:
                        jobs[pool.submit(self._ask, question)] = question
                for job in wait(jobs, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    yield jobs.pop(job), job.result()
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()

    def _ask(self, question: str) -> dict[str, Any] | None:
        pause = self._first_pause
        for attempt in range(self._attempts):
            self._rate.wait(self._stop)
            if self._stop.is_set():
                return None
            try:
                return self._once(question)
            except (self._openai.APIError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                asked_for = self._diagnose(error)
                if attempt + 1 < self._attempts:
                    self._stop.wait(max(pause, asked_for))
                    pause = min(2 * pause, 60.0)
        self._count("failed")
        return None

    def _once(self, question: str) -> dict[str, Any]:
        """Sends one request. Raises APIError, or ValueError for an unusable answer."""
        answer = self._client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": question}],
            max_tokens=self._max_tokens,
            temperature=0,
        )
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None or choices[0].message.content is None:
            raise ValueError("an answer without content")
        if self._check is not None:
            self._check(choices[0].message.content)
        usage = answer.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        cut = choices[0].finish_reason == "length"
        record = self.cache.put(key_of(self.model, question), choices[0].message.content, *tokens, cut)
        self._count("asked")
        return record

    def _diagnose(self, error: Exception) -> float:
        """Counts a failed attempt; returns the pause that the server asks for, in seconds. Raises UserError."""
        status = getattr(error, "status_code", None)
        if isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 429):
            raise UserError(f"{self.model}: the endpoint refuses the request ({status}): {error}") from error
        kind = f"status {status}" if status else type(error).__name__
        self._count(f"retried after {kind}")
        headers = getattr(getattr(error, "response", None), "headers", {})
        try:
            seconds = float(headers.get("retry-after", 0))
        except ValueError:
            seconds = 0.0  # a date, which servers hardly ever send; our own pause will do
        if status == 429:
            self._rate.pause(seconds)
        return seconds

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

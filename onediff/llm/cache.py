"""A cache of answers on disk: an answered question is never asked, or paid for, again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


class Cache:
    """An append-only JSONL file of `{"key", "answer", "tokens_in", "tokens_out"}`, with `"cut": true` for an answer that
    reached the limit of tokens; safe for threads and against kills."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._file = path.open("a+b")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            # A kill may have cut off the last line; remove it, so that the next answer gets its own line.
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                record = json.loads(line)
                self._answers[record["key"]] = {**record, "answer": str(record["answer"])}
            except (ValueError, KeyError, TypeError):
                continue  # not an answer; ask again
        self._file.truncate(whole)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        return self._answers.get(key)

    def put(self, key: str, answer: str, tokens_in: int, tokens_out: int, cut: bool = False) -> dict[str, Any]:
        """Stores an answer, before anyone uses it."""
        record: dict[str, Any] = {"key": key, "answer": answer, "tokens_in": tokens_in, "tokens_out": tokens_out}
        if cut:
            record["cut"] = True
        with self._lock:
            os.write(self._file.fileno(), json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._answers[key] = record
        return record

    def close(self) -> None:
        self._file.close()


def key_of(model: str, question: str) -> str:
    """The cache key of a question."""
    return hashlib.sha256(json.dumps([model, question]).encode()).hexdigest()

"""Answer files: each rank appends to its own, and the files of all ranks and reruns are read together.

A line is `{"id", "caption", "by"}`, with `fault` for a pair that could not be read. `by` is a fingerprint of what answered:
weights, decoding, prompt, images. Lines with another fingerprint are ignored, so a rerun with another model or other
decoding never reuses their answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from onediff.errors import UserError


class Answer(NamedTuple):
    """The caption of a pair, and where the model looked (`attention_map.packed`) if that was requested."""

    caption: str
    attention: str | None = None
    fault: str | None = None
    """Why the pair could not be read; its caption is then empty."""


def fingerprint(**parts: Any) -> str:
    """A short digest of everything that an answer depends on."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_answers(folder: Path, label: str, by: str) -> dict[str, Answer]:
    """The answers of all ranks with the fingerprint `by`; the first one if a pair was answered twice, unless it could not
    be read then.

    An incomplete last line, left by a rank that was killed while writing, is ignored. Raises UserError for a line that is
    not an answer.
    """
    found: dict[str, Answer] = {}
    for file in sorted(folder.glob(f"{label}.rank*.jsonl")):
        whole, _, _ = file.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                if record.get("by") == by:
                    attention = record.get("attention") or record.get("heat")  # the latter in older files
                    pair = str(record["id"])
                    if pair not in found or found[pair].fault:
                        found[pair] = Answer(str(record["caption"]), attention, record.get("fault"))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{file}: line {number} is not an answer; delete the file to caption again") from None
    return found


class AnswerFile(AbstractContextManager["AnswerFile"]):
    """The file of one rank, open for appending; no other rank writes to it."""

    def __init__(self, folder: Path, label: str, rank: int, by: str) -> None:
        self.path = folder / f"{label}.rank{rank}.jsonl"
        self.by = by
        self._drop_half_a_line()
        self._out = self.path.open("a", encoding="utf-8")

    def write(self, answers: Mapping[str, Answer]) -> None:
        """Appends one line per pair and flushes them to the operating system."""
        for pair, answer in answers.items():
            record = {"id": pair, "caption": answer.caption, "by": self.by}
            if answer.attention is not None:
                record["attention"] = answer.attention
            if answer.fault is not None:
                record["fault"] = answer.fault
            self._out.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._out.flush()

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def _drop_half_a_line(self) -> None:
        """Removes an incomplete last line, so that what is appended starts a new one."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            kept = file.read().rfind(b"\n") + 1
            file.truncate(kept)

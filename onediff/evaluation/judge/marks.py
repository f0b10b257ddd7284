"""Two marks for each caption: how correct and how complete it is. The prompt is `marks.txt`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from onediff.llm import Asker

PROMPT = Path(__file__).with_name("marks.txt")
HIGHEST = 4
OBJECT = re.compile(r"\{[^{}]*\}")


class Marks(NamedTuple):
    """Fractions: 1 means nothing wrong, or nothing left out."""

    correctness: float
    completeness: float


def marked(
    asker: Asker, references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
) -> Iterator[tuple[str, Marks | None]]:
    """Yields the marks of each pair; None if there was no usable answer. Raises UserError if the endpoint refuses."""
    questions = {pair: question(references[pair], caption) for pair, caption in predictions.items()}
    for pair, record in asker.ask_each(questions):
        yield pair, read(record["answer"]) if record else None


def question(references: Sequence[str], caption: str) -> str:
    """The prompt about one pair."""
    return filled(
        PROMPT, references="\n".join(map(listed, references)), caption=" ".join(caption.split()) or "(nothing)"
    )


def filled(prompt: Path, **words: str) -> str:
    """The prompt in a file, with each `{name}` filled in. A single pass, so braces in a caption are left alone."""
    names = "|".join(rf"\{{{name}\}}" for name in words)
    return re.sub(names, lambda match: words[match[0][1:-1]], prompt.read_text(encoding="utf-8"))


def listed(text: str) -> str:
    return f"- {' '.join(text.split())}"


def read(text: str) -> Marks:
    """The two marks in a model's answer, whatever text surrounds the JSON. Raises ValueError."""
    for found in reversed(OBJECT.findall(text)):
        marks = json.loads(found)
        if {"correctness", "completeness"} <= set(marks):
            values = [marks["correctness"], marks["completeness"]]
            if all(isinstance(value, (int, float)) and 0 <= value <= HIGHEST for value in values):
                return Marks(*(value / HIGHEST for value in values))
    raise ValueError(f"no two marks from 0 to {HIGHEST} in {text[:80]!r}")

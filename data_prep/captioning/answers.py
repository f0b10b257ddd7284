"""Decides which answers of a language model may become captions."""

from __future__ import annotations

import re

MIN_WORDS, MAX_WORDS = 3, 60
REFUSAL = re.compile(
    r"^\W*(i'?m sorry|sorry\b|i am sorry|i cannot|i can'?t|i am unable|i'?m unable|as an ai|unfortunately)",
    re.IGNORECASE,
)
GIVEAWAY = re.compile(r"\b(captions?|prompts?|instructions?|descriptions?|language model|texts)\b", re.IGNORECASE)


def clean(answer: str) -> str:
    """The answer on one line, without the quotation marks that models often put around it."""
    line = " ".join(answer.split())
    return line[1:-1].strip() if len(line) > 1 and line[0] + line[-1] in ('""', "''", "“”") else line


def fault_of(answer: str) -> str | None:
    """The kind of fault that disqualifies a cleaned answer as a caption; None for a good one."""
    words = len(answer.split())
    if not words:
        return "empty"
    if REFUSAL.search(answer):
        return "refusal"
    if GIVEAWAY.search(answer):
        return "mentions_captions"
    return "too_short" if words < MIN_WORDS else "too_long" if words > MAX_WORDS else None

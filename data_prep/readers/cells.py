"""Interprets one cell of a table: a text, the captions of a pair, or an image."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from onediff.errors import UserError

NOTHING = {"nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "#N/A"}
"""Texts that programs write into empty cells."""


STRINGS = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(\s+(?=['"]))?""", re.DOTALL)
"""A Python string, and the space before another one that follows without a comma."""


def word(value: Any) -> str:
    """A cell as text; empty if the cell has no value. The number 0 is a value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of integers with a gap is read as floats
    text = str(value).strip()
    return "" if text in NOTHING else text


def texts(value: Any, where: str) -> list[str]:
    """The captions of one cell: a text, a list of texts, or such a list written as text. An empty cell is an empty caption.

    Raises UserError for an object, since only one of its fields is the text.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = _literal(value)
    if isinstance(value, dict) and value:
        raise UserError(
            f"{where}: the caption is an object with the fields {', '.join(map(repr, value))}; put the text into "
            "its own column"
        )
    if isinstance(value, list):
        return [text for item in value if item is not None for text in texts(item, where)]
    if value is None or value == {}:
        return []
    return ["" if isinstance(value, float) and math.isnan(value) else _without_nothing(str(value))]


def turns(value: Any, where: str) -> tuple[dict[str, str], ...]:
    """A conversation, from the first question on; empty if the cell has no value. Raises UserError for other formats."""
    if isinstance(value, str) and value.strip():
        value = _literal(value)
    if not value:
        return ()
    if isinstance(value, list):
        value = [_turn(turn) for turn in value]
    is_plain = isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)
        for turn in value
    )
    if not is_plain:
        raise UserError(f'{where}: a conversation must be a list of {{"from", "value"}}, or of {{"role", "content"}}')
    start = next((place for place, turn in enumerate(value) if turn["from"] == "human"), len(value))
    return tuple({"from": turn["from"], "value": turn["value"]} for turn in value[start:])


def _turn(turn: Any) -> Any:
    """Converts `{"role", "content"}`, as in chat templates, to LLaVA's keys; returns anything else unchanged."""
    if not isinstance(turn, dict) or turn.get("role") not in SPEAKERS or "content" not in turn:
        return turn
    content = turn["content"]
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        parts = ["<image>" if part.get("type") == "image" else part.get("text") for part in content]
        content = "\n".join(parts) if all(isinstance(part, str) for part in parts) else None
    return {"from": SPEAKERS[turn["role"]], "value": content}


SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def kept(value: Any) -> Any:
    """A cell as a JSON value for a record's metadata: dates and the like as text; None for an empty cell or bytes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [kept(item) for item in value] or None
    if isinstance(value, dict):
        return {str(name): kept(item) for name, item in value.items()} or None
    if value is None or value == "" or isinstance(value, bytes):
        return None
    return value if isinstance(value, str | int) else str(value)


def image(value: Any) -> str | bytes:
    """A path or URL, or the bytes of an image inside the table (as `datasets` writes them)."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, bytes) else word(value)


def _literal(text: str) -> Any:
    """The list or object that `text` represents in JSON or Python; otherwise the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        try:
            # NumPy prints arrays without commas, and Python would join the strings into one.
            listed = STRINGS.sub(lambda found: found[1] + (", " if found[2] else ""), text.strip())
            value = ast.literal_eval(listed)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text  # a caption may begin with a bracket
    # People also write `[1]` and `{x}`.
    if isinstance(value, list) and all(isinstance(item, str | dict) or item is None for item in value):
        return value
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else text


def _without_nothing(text: str) -> str:
    return "" if text.strip() in NOTHING else text

"""Reads annotation files row by row, with errors that name the file and the location."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from onediff.errors import UserError

PIECE = 1 << 20
PACKED = {".gz": "gunzip", ".tgz": "gunzip", ".zst": "unzstd", ".xz": "unxz", ".bz2": "bunzip2", ".zip": "unzip"}
"""Commands that unpack compressed files."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a repeated key: one of the values would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is repeated in one object")
    return made


def _no_value(_: str) -> None:
    """None for `NaN` or `Infinity`, which Python writes although JSON has no such values."""


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_value)


def load_json(path: Path) -> Any:
    """The content of a small JSON file. Raises UserError."""
    with open_text(path) as file:
        text = file.read()
    try:
        return DECODER.decode(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def json_rows(path: Path, key: str = "") -> Iterator[dict[str, Any]]:
    """The rows of a JSON table: an array of objects; an array inside an object, such as `{"data": […]}`, under `key` if
    there are several; or an object of objects, whose names become the column `key`. Raises UserError.

    A top-level array is read in pieces, the other forms at once.
    """
    with open_text(path) as file:
        start = file.read(PIECE).lstrip()[:1]
    if start != "{":
        yield from json_array(path)
        return
    whole = load_json(path)
    arrays = [name for name, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if key or len(arrays) == 1:
        rows = whole.get(key or arrays[0])
        if not isinstance(rows, list):
            raise UserError(f"{path}: no array of rows under {key!r}; there are {', '.join(arrays) or 'none'}")
    elif arrays:
        raise UserError(
            f"{path}: arrays of rows under {', '.join(arrays)}; choose one, as in --columns rows={arrays[0]}"
        )
    elif whole and all(isinstance(value, dict) for value in whole.values()):
        rows = [{"key": name, **value} for name, value in whole.items()]
    else:
        raise UserError(f"{path}: expected a JSON array of rows, or an object that holds one")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path} row {number}: expected an object, not {type(row).__name__}")
        yield row


def json_array(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a top-level JSON array, one at a time: a gigabyte of annotations in a few megabytes of memory."""
    between = re.compile(r"[\s,]*")
    with open_text(path) as file:
        text, number = file.read(PIECE).lstrip(), 0
        if not text.startswith("["):
            raise UserError(f"{path}: expected a JSON array of rows")
        at = 1
        while True:
            at = between.match(text, at).end()  # type: ignore[union-attr]
            if text.startswith("]", at):
                return
            try:
                value, at = DECODER.raw_decode(text, at)
            except ValueError as error:
                # The row may continue in the next piece; doubling keeps the work linear if a row is larger than a piece.
                piece = file.read(max(PIECE, len(text) - at))
                if not piece:
                    raise UserError(f"{path} row {number + 1}: not JSON: {error}") from error
                text, at = text[at:] + piece, 0
                continue
            number += 1
            if not isinstance(value, dict):
                raise UserError(f"{path} row {number}: expected an object, not {type(value).__name__}")
            yield value


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; skips blank lines. Raises UserError."""
    with open_text(path) as file:
        yield from objects_of(file, path)


def objects_of(lines: Iterable[str], path: Path, first: int = 1) -> Iterator[dict[str, Any]]:
    """The objects in the lines of a JSONL file, from line `first` on. Raises UserError."""
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            value = DECODER.decode(line)
        except ValueError as error:
            raise UserError(f"{path} line {number}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f"{path} line {number}: expected an object, not {type(value).__name__}")
        yield value


def field_of(row: Any, name: str, where: str) -> Any:
    """`row[name]`. Raises UserError that lists the existing fields."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, not {type(row).__name__}")
    if name not in row:
        raise UserError(f"{where}: no field {name!r}, only {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def sentences_of(row: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    """The sentences in a field that holds a list or a single one. Raises UserError for anything else."""
    value = field_of(row, name, where)
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(sentence, str) for sentence in listed):
        raise UserError(f"{where}: field {name!r} must be a list of sentences")
    return tuple(listed)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file as text: UTF-8, or UTF-16 with the byte order mark that Excel and Notepad write.

    Raises UserError if there is no such file or it has another encoding.
    """
    with reading_text(path):
        with open(path, "rb") as file:
            is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        with open(path, encoding="utf-16" if is_utf16 else "utf-8-sig", newline="") as file:
            yield file


@contextmanager
def reading_text(path: Path) -> Iterator[None]:
    """A context that raises UserError if there is no such file or its bytes are not text."""
    try:
        yield
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{path}{_line_that_is_no_text(path)}: not text in UTF-8 ({reason}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _line_that_is_no_text(path: Path) -> str:
    """` line 7` for the first line that is not UTF-8; empty if there is none, as in broken UTF-16."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                is_utf16 = number == 1 and line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                return "" if is_utf16 else f" line {number}"
    return ""

"""Captions from files: COCO-style JSON, this project's JSON lines, CSV. Every error is one line that says where it is.

Ids are text: the integer 7 and the string "7" are the same id. Windows line ends and a UTF-8 byte-order mark are accepted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from onediff.atomic import write_whole
from onediff.data.sample import change_list
from onediff.errors import UserError
from onediff.evaluation.items.known import known as known_changes

ID_NAMES = ("id", "image_id")
TEXT_NAMES = ("caption", "captions", "text", "prediction")
TYPE_NAME = "change_type"


class References(NamedTuple):
    """Captions of each pair in the order of the file, and its change type and change list if they are known."""

    captions: Mapping[str, Sequence[str]]
    change_types: Mapping[str, str] = {}
    changes: Mapping[str, Mapping[str, Any]] = {}
    where: str = "references"
    """the file, for messages"""


class Predictions(dict[str, str]):
    """The caption of each pair by id."""

    where = "predictions"
    """the file, for messages"""


class FileRow(NamedTuple):
    """One or more captions of a pair, as read from a file; `where` names file and row in messages."""

    where: str
    pair: str
    captions: list[str]
    change_type: str | None
    changes: dict[str, Any] | None


def read_references(path: Path) -> References:
    """All captions of each id, wherever they are in the file. Raises UserError."""
    captions: dict[str, list[str]] = {}
    change_types: dict[str, str] = {}
    changes: dict[str, dict[str, Any]] = {}
    for row in _rows(path):
        captions.setdefault(row.pair, []).extend(row.captions)
        if row.change_type is not None:
            known = change_types.setdefault(row.pair, row.change_type)
            if known != row.change_type:
                raise UserError(f"{row.where}: id {row.pair!r} is {row.change_type!r} here and {known!r} above")
        if row.changes is not None:
            known_changes(row.changes, row.where)
            changes[row.pair] = row.changes
    if not captions:
        raise UserError(f"{path}: no references in it")
    return References(captions, change_types, changes, str(path))


def read_predictions(path: Path, allow_missing: bool = False) -> Predictions:
    """The caption of each id. An empty one is an error, or left out with `allow_missing`. Raises UserError."""
    found = Predictions()
    found.where = str(path)
    seen: dict[str, str] = {}
    for row in _rows(path):
        if row.pair in seen:
            raise UserError(f"{row.where}: a second prediction for id {row.pair!r} (the first: {seen[row.pair]})")
        seen[row.pair] = row.where
        if len(row.captions) != 1:
            raise UserError(
                f"{row.where}: {len(row.captions)} captions for id {row.pair!r}; a prediction has exactly one"
            )
        if row.captions[0].strip():
            found[row.pair] = row.captions[0]
        elif not allow_missing:
            raise UserError(f"{row.where}: empty caption for id {row.pair!r}; --allow-missing leaves such pairs out")
    if not found:
        raise UserError(f"{path}: no predictions in it")
    return found


def _rows(path: Path) -> Iterator[FileRow]:
    text = read_text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv_rows(path, text)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _json_line_rows(path, text)
    if path.suffix.lower() == ".json":
        return _coco_rows(path, parsed(text, str(path)))
    raise UserError(f"{path}: unknown kind of file; captions are read from .json (COCO), .jsonl, .csv and .tsv")


def read_text(path: Path) -> str:
    """The file as text. Raises UserError if it is missing or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it, for example with iconv") from None


def write_aside(path: Path, text: str) -> None:
    """Writes a whole file and creates its folder. Raises UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def parsed(text: str, where: str) -> Any:
    """Parses JSON. Refuses NaN and infinities, which are not JSON and which other readers refuse."""

    def refuse(constant: str) -> NoReturn:
        raise UserError(f"{where}: {constant} is not JSON; write null or a number")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{where}: not captions: JSON nested too deeply") from None


def _coco_rows(path: Path, value: Any) -> Iterator[FileRow]:
    """`{"annotations": [{"image_id", "caption"}]}` or the bare list. The list of images is ignored: published files
    list an image once for each of its sentences."""
    if isinstance(value, dict):
        if not isinstance(value.get("annotations"), list):
            raise UserError(f'{path}: no list "annotations", which COCO-style captions need')
        value = value["annotations"]
    if not isinstance(value, list):
        raise UserError(f"{path}: neither a list of captions nor COCO-style annotations")
    # In COCO files `id` numbers the annotation; the image is `image_id`.
    return (_row(f"{path}: entry {i}", entry, ("image_id", "id")) for i, entry in enumerate(value))


def _json_line_rows(path: Path, text: str) -> Iterator[FileRow]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _row(where, parsed(line.strip(), where), ID_NAMES)


def _csv_rows(path: Path, text: str) -> Iterator[FileRow]:
    """A header with one of `ID_NAMES` and one of `TEXT_NAMES`; other columns are ignored, except `change_type`."""
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    try:
        header = reader.fieldnames or []
        for names in (ID_NAMES, TEXT_NAMES):
            if not set(names) & set(header):
                shown = ", ".join(map(repr, header)) or "nothing"
                raise UserError(f"{path}: no column {names[0]!r} in the header, which has {shown}")
        for entry in reader:
            where = f"{path}: line {reader.line_num}"
            if None in entry or None in entry.values():
                raise UserError(
                    f"{where}: more or fewer fields than the header; quote captions that contain the delimiter"
                )
            yield _row(where, {name: value for name, value in entry.items() if value or name in TEXT_NAMES}, ID_NAMES)
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None


def _row(where: str, entry: Any, id_names: Iterable[str]) -> FileRow:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: not an object with an id and a caption")
    pair = _first(where, entry, id_names)
    if isinstance(pair, bool) or not isinstance(pair, (int, str)) or pair == "":
        raise UserError(f"{where}: the id is {pair!r}; ids are text or whole numbers")
    captions = _first(where, entry, TEXT_NAMES)
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise UserError(f"{where}: the caption of id {str(pair)!r} is not text")
    if any(0xD800 <= ord(letter) <= 0xDFFF for caption in captions for letter in caption):
        raise UserError(f"{where}: the caption of id {str(pair)!r} contains half a character (a lone surrogate)")
    meta = entry.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    kind = entry.get(TYPE_NAME, meta.get(TYPE_NAME))
    if kind is not None and not isinstance(kind, str):
        raise UserError(f"{where}: {TYPE_NAME} {kind!r} is not text")
    return FileRow(where, str(pair), captions, kind, change_list(meta))


def _first(where: str, entry: Mapping[str, Any], names: Iterable[str]) -> Any:
    for name in names:
        if name in entry:
            return entry[name]
    raise UserError(f"{where}: no {' or '.join(repr(name) for name in names)} in it")

"""A table of your own: CSV, TSV, JSON, JSONL or Parquet with the columns before, after, one or more captions, split."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from os.path import basename, splitext
from pathlib import Path
from typing import Any

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import json_array, json_lines, open_text
from onediff.errors import UserError

# Columns with a meaning, and other names that tables use for them.
COLUMNS = {
    "before": ("before", "image_before", "img0", "source", "source_img", "original_image"),
    "after": ("after", "image_after", "img1", "target", "target_img", "edited_image"),
    "image": ("image", "picture", "file"),
    "captions": ("captions", "caption", "sentences", "text", "description"),
    "split": ("split",),
    "id": ("id", "uid", "key"),
    "instruction": ("instruction",),
    "change_type": ("change_type",),
}

TOLD = {"edit", "caption_before", "caption_after"}
"""Columns from which `onediff data caption` makes captions: a table that has one may lack the captions themselves."""


def rows(inputs: Inputs) -> Iterator[Row]:
    table = inputs.annotation("pairs.csv", "pairs.jsonl", "pairs.parquet")
    columns: dict[str, str] | None = None
    caption_columns: list[str] = []
    for where, fields in table_rows(table):
        if columns is None:
            columns = meanings(list(fields), inputs.columns, table)
            caption_columns = captions_in(list(fields), columns)
            if not caption_columns and not TOLD.intersection(fields):
                raise UserError(f"{table}: no column 'caption'; it has {', '.join(fields)} (--columns caption=NAME)")
        yield table_row(where, fields, columns, caption_columns)


def table_row(where: str, fields: dict[str, Any], columns: dict[str, str], caption_columns: list[str]) -> Row:
    """One row, with whatever pictures and captions it has."""
    roles = ("image",) if "image" in columns else ("before", "after")
    pictures = {role: picture(fields.get(columns[role])) for role in roles}
    captions = [text for name in caption_columns for text in texts(fields.get(name))]
    plain = {
        name: str(fields[columns[name]] or "").strip()
        for name in ("split", "id", "instruction", "change_type")
        if name in columns
    }
    used = {*columns.values(), *caption_columns}
    other = {
        name: value
        for name, value in fields.items()
        if name not in used and isinstance(value, (str, int, float, bool)) and value != ""
    }
    change = {"change_type": plain["change_type"]} if plain.get("change_type") else {}
    paths = [splitext(basename(value))[0] for value in pictures.values() if isinstance(value, str)]
    return Row(
        where,
        plain.get("id") or "-".join(paths) or where,
        split_name(plain.get("split", "")),
        pictures,
        tuple(captions),
        instruction=plain.get("instruction") or None,
        meta={**other, **change},
    )


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a table with words for where it stands. Raises UserError."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from csv_rows(path, "\t" if kind == ".tsv" else ",")
    elif kind in (".jsonl", ".ndjson"):
        yield from ((f"{path.name} row {n}", row) for n, row in enumerate(json_lines(path), 1))
    elif kind == ".json":
        yield from ((f"{path.name} row {n}", row) for n, row in enumerate(json_array(path), 1))
    elif kind in (".parquet", ".pq"):
        yield from parquet_rows(path)
    else:
        raise UserError(f"{path}: a table must be .csv, .tsv, .json, .jsonl or .parquet")


def csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_text(path) as lines:
        try:
            table = csv.DictReader(lines, delimiter=delimiter, strict=True)
            for number, row in enumerate(table, 1):
                if None in row or None in row.values():
                    given = len(row.get(None) or ()) + sum(value is not None for name, value in row.items() if name)
                    raise UserError(
                        f"{path.name} row {number}: {given} cells, but the header names {len(table.fieldnames or ())}; "
                        "put text with a comma into double quotes"
                    )
                yield f"{path.name} row {number}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a table in UTF-8: {error}") from error


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow") from error
    try:
        file, number = ParquetFile(path), 0
        for batch in file.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name} row {number}", row
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error


def meanings(header: list[str], named: dict[str, str], table: Path) -> dict[str, str]:
    """`meaning → column`, by the user's names first. Raises UserError when there are no pictures in the table."""
    folded = {name.strip().lower(): name for name in header if name}
    columns = {}
    for meaning, guesses in COLUMNS.items():
        given = named.get(meaning) or (named.get("caption") if meaning == "captions" else None)
        if given and given not in header:
            raise UserError(f"{table}: no column {given!r}; it has {', '.join(header)}")
        found = given or next((folded[guess] for guess in guesses if guess in folded), None)
        if found:
            columns[meaning] = found
    if "before" in columns and "after" in columns:
        columns.pop("image", None)
    elif "image" not in columns:
        lacking = "after" if "before" in columns else "before"
        raise UserError(
            f"{table}: no column {lacking!r}; it has {', '.join(map(str, header))} (--columns {lacking}=NAME)"
        )
    return columns


def captions_in(header: list[str], columns: dict[str, str]) -> list[str]:
    """All caption columns: the named one, and `caption_1`, `caption2`, … beside it."""
    first = [columns["captions"]] if "captions" in columns else []
    numbered = [name for name in header if name and name.lower().rstrip("0123456789").rstrip("_") == "caption"]
    return list(dict.fromkeys(first + numbered))


def picture(value: Any) -> str | bytes:
    """A path or URL, or the bytes of a picture inside the table (as `datasets` writes them)."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    return str(value or "").strip()


def texts(value: Any) -> list[str]:
    """The captions of one cell: a list, a JSON list in a string, or one text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]  # A caption may begin with a bracket.
    if isinstance(value, list):
        return [str(text) for text in value if text is not None]
    return [] if value is None else [str(value)]


READER = Reader(
    name="generic",
    summary="your own table of pairs (before, after, caption) or of pictures (image, caption)",
    source="",
    licence="",
    layout="--table pairs.csv (or .tsv, .json, .jsonl, .parquet) with before, after, caption…, split; pictures beside it, "
    "in --images, in archives there (ARCHIVE#MEMBER), or by URL (--fetch)",
    rows=rows,
)

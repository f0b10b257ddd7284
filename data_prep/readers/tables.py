"""Tables of any kind as rows: CSV, TSV, JSON, JSONL and Parquet, and the columns that they have in all."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.readers.files import json_array, json_lines, open_text
from onediff.errors import UserError

TableRow = tuple[str, dict[str, Any]]
"""Words for where a row stands, and its cells by column."""


def columns_of(path: Path) -> list[str]:
    """Every column of the table, in the order in which they first appear; a JSON table is read once for that.

    Raises UserError where two columns have the same name, of which one would be lost.
    """
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _unique(_header(path), path)
    if kind in (".parquet", ".pq"):
        return _unique(_parquet(path).schema_arrow.names, path)
    found: dict[str, None] = {}
    for _, row in table_rows(path):
        found |= dict.fromkeys(row)
    return list(found)


def table_rows(path: Path) -> Iterator[TableRow]:
    """Every row of a table. Raises UserError."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _csv_rows(path)
    elif kind in (".jsonl", ".ndjson"):
        yield from ((f"{path.name} row {n}", row) for n, row in enumerate(json_lines(path), 1))
    elif kind == ".json":
        yield from ((f"{path.name} row {n}", row) for n, row in enumerate(json_array(path), 1))
    elif kind in (".parquet", ".pq"):
        yield from _parquet_rows(path)
    else:
        raise UserError(f"{path}: a table must be .csv, .tsv, .json, .jsonl or .parquet")


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _header(path: Path) -> list[str]:
    with open_text(path) as lines:
        try:
            return next(csv.reader(lines, delimiter=_delimiter(path), strict=True), [])
        except csv.Error as error:
            raise UserError(f"{path}: not a table: {error}") from None


def _csv_rows(path: Path) -> Iterator[TableRow]:
    with open_text(path) as lines:
        try:
            table = csv.DictReader(lines, delimiter=_delimiter(path), strict=True)
            for number, row in enumerate(table, 1):
                if None in row or None in row.values():
                    given = len(row.get(None) or ()) + sum(value is not None for name, value in row.items() if name)
                    raise UserError(
                        f"{path.name} row {number}: {given} cells, but the header names {len(table.fieldnames or ())}; "
                        "put text with a comma into double quotes"
                    )
                yield f"{path.name} row {number}", row
        except csv.Error as error:
            raise UserError(f"{path}: not a table: {error}") from None


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow") from error
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error


def _parquet_rows(path: Path) -> Iterator[TableRow]:
    file, number = _parquet(path), 0
    from pyarrow import ArrowException

    try:
        for batch in file.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name} row {number}", row
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error


def _unique(header: Iterable[str], path: Path) -> list[str]:
    names = list(header)
    # `Caption` beside `caption` is a second name for the same thing, too.
    twice = [name for name, count in Counter(name.strip().lower() for name in names).items() if count > 1 and name]
    if twice:
        raise UserError(
            f"{path}: two columns are called {twice[0]!r}; give each a name of its own, such as {twice[0]}_2"
        )
    return names

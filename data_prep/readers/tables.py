"""Tables of any kind as rows: CSV, TSV, JSON, JSONL, Parquet and Arrow, and the columns that they have in all."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.readers.files import json_lines, json_rows, open_text
from onediff.errors import UserError

TableRow = tuple[str, dict[str, Any]]
"""Words for where a row stands, and its cells by column."""
DELIMITED = (".csv", ".tsv", ".tab")
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet", ".pq")
KINDS = (*DELIMITED, *LINES, *PARQUET, ".json", ".arrow")
"""Suffixes of tables."""
SHEETS = (".xlsx", ".xls", ".ods")
LONGEST_CELL = 1 << 24
"""Characters of a cell; the csv module's own limit is 131,072, and a quote that is never closed makes one of a file."""


def columns_of(path: Path, key: str = "") -> list[str]:
    """Every column of the table, in the order in which they first appear; a JSON table is read once for that.

    Raises UserError where two columns have the same name, of which one would be lost.
    """
    kind = _kind(path)
    if kind in DELIMITED:
        return _unique(_header(path), path)
    if kind in PARQUET:
        return _unique(_parquet(path).schema_arrow.names, path)
    if kind == ".arrow":
        first = next(_arrow_batches(path), None)
        return _unique(first.schema.names, path) if first is not None else []
    found: dict[str, None] = {}
    for _, row in table_rows(path, key):
        found |= dict.fromkeys(row)
    return list(found)


def columns_of_all(paths: Sequence[Path], key: str = "") -> list[str]:
    """The columns of all these tables."""
    return list(dict.fromkeys(name for path in paths for name in columns_of(path, key)))


def table_rows(path: Path, key: str = "") -> Iterator[TableRow]:
    """Every row of a table. `key` names the array of rows in a JSON object. Raises UserError."""
    kind = _kind(path)
    if kind in DELIMITED:
        yield from _csv_rows(path)
    elif kind in LINES:
        yield from ((f"{path.name} row {n}", row) for n, row in enumerate(json_lines(path), 1))
    elif kind == ".json":
        yield from ((f"{path.name} row {n}", row) for n, row in enumerate(json_rows(path, key), 1))
    else:
        yield from _arrow_rows(path)


def _kind(path: Path) -> str:
    """The suffix of a table. Raises UserError for what is none."""
    kind = path.suffix.lower()
    if kind in SHEETS:
        made = path.with_suffix(".csv").name
        raise UserError(
            f"{path}: a spreadsheet is not read; save the sheet as 'CSV UTF-8', or: pip install pandas openpyxl; python -c "
            f"\"import pandas; pandas.read_excel('{path.name}').to_csv('{made}', index=False)\""
        )
    if kind not in KINDS:
        raise UserError(f"{path}: a table must be .csv, .tsv, .json, .jsonl, .parquet or .arrow")
    return kind


def _delimiter(path: Path) -> str:
    """What stands between cells: of comma, semicolon, tab and bar the most frequent in the header."""
    if path.suffix.lower() != ".csv":
        return "\t"
    with open_text(path) as lines:
        header = lines.readline(LONGEST_CELL)
    return max(",;\t|", key=header.count)


def _header(path: Path) -> list[str]:
    with _reading(path), open_text(path) as lines:
        return next(csv.reader(lines, delimiter=_delimiter(path), strict=True), [])


def _csv_rows(path: Path) -> Iterator[TableRow]:
    with _reading(path), open_text(path) as lines:
        table = csv.DictReader(lines, delimiter=_delimiter(path), strict=True)
        for number, row in enumerate(table, 1):
            if None in row or None in row.values():
                given = len(row.get(None) or ()) + sum(value is not None for name, value in row.items() if name)
                raise UserError(
                    f"{path.name} row {number}: {given} cells, but the header names {len(table.fieldnames or ())}; "
                    "put text with a comma into double quotes"
                )
            yield f"{path.name} row {number}", row


class _reading:
    """Turns what the csv module raises into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        csv.field_size_limit(LONGEST_CELL)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, csv.Error):
            raise UserError(f"{self.path}: not a table: {error}") from None


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


def _arrow_batches(path: Path) -> Iterator[Any]:
    """The record batches of Parquet, or of Arrow's stream and file formats, which `datasets` writes. Raises UserError."""
    from pyarrow import ArrowException, ipc, memory_map

    try:
        if path.suffix.lower() in PARQUET:
            yield from _parquet(path).iter_batches(batch_size=64)
            return
        with memory_map(str(path)) as file:
            try:
                batches: Iterator[Any] = iter(ipc.open_stream(file))
            except ArrowException:
                file.seek(0)
                found = ipc.open_file(file)
                batches = (found.get_batch(number) for number in range(found.num_record_batches))
            for batch in batches:
                batch.validate(full=True)  # Arrow reads where damaged offsets point, out of its memory too
                yield batch
    except (ArrowException, OSError, UnicodeError) as error:
        kind = "Parquet" if path.suffix.lower() in PARQUET else "Arrow"
        raise UserError(f"{path}: not a whole {kind} file: {error}") from error


def _arrow_rows(path: Path) -> Iterator[TableRow]:
    number = 0
    for batch in _arrow_batches(path):
        for at in range(0, len(batch), 64):  # images as Python bytes: a few at a time
            try:
                rows = batch.slice(at, 64).to_pylist()
            except ValueError as error:  # text that is no UTF-8, above all
                raise UserError(f"{path}: damaged behind row {number}: {error}") from error
            for row in rows:
                number += 1
                yield f"{path.name} row {number}", row


def _unique(header: Iterable[str], path: Path) -> list[str]:
    names = list(header)
    # `Caption` beside `caption` is a second name for the same thing, too.
    twice = [name for name, count in Counter(name.strip().lower() for name in names).items() if count > 1 and name]
    if twice:
        raise UserError(
            f"{path}: two columns are called {twice[0]!r}; give each a name of its own, such as {twice[0]}_2"
        )
    return names

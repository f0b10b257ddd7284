"""Reads the rows and columns of tables: CSV, TSV, JSON, JSONL, Parquet and Arrow."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_prep.readers.delimited import is_regular
from data_prep.readers.files import DECODER, PACKED, json_lines, json_rows, objects_of, open_text, reading_text
from data_prep.readers.lines import are_exact, line_pieces, parsed_lines
from onediff.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TableRow = tuple[str, dict[str, Any]]
"""The location of a row, as text, and its cells by column."""
DELIMITED = (".csv", ".tsv", ".tab")
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet", ".pq")
KINDS = (*DELIMITED, *LINES, *PARQUET, ".json", ".arrow")
"""Suffixes of tables."""
SHEETS = (".xlsx", ".xls", ".ods")
LONGEST_CELL = 1 << 24
"""Maximum characters of a cell; the csv module's default is 131,072. An unclosed quote turns a whole file into a cell."""
ROWS = 4096
"""Rows read at once; 64 if cells are binary, since they may be images."""
JSON = "row as JSON"
"""The only column of a batch of JSON rows, whose cells may be of any type."""


class TableBatch(NamedTuple):
    """Consecutive rows of a table; the first has the number `first`, counted from 1."""

    first: int
    cells: pa.RecordBatch
    """Cells by column; JSON rows as text, in the column `JSON`."""
    parsed: Sequence[dict[str, Any]] | None = None
    """JSON rows as objects, if they were read as such."""
    columns: pa.RecordBatch | None = None
    """JSON rows by column, if they were read by column."""


def fields_of(cells: pa.RecordBatch, at: int) -> dict[str, Any]:
    """Row `at` of a batch, by column."""
    names = cells.schema.names
    if names == [JSON]:
        found: dict[str, Any] = DECODER.decode(cells.column(0)[at].as_py())
        return found
    return {name: cells.column(place)[at].as_py() for place, name in enumerate(names)}


ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def columns_of(path: Path, key: str = "") -> list[str]:
    """All columns of the table, in the order of first appearance; reads a JSON table once to find them.

    Raises UserError if two columns have the same name, since one would be lost.
    """
    kind = _kind(path)
    if kind in DELIMITED:
        return _unique(_header(path), path)
    if kind in PARQUET:
        return _unique(_parquet(path).schema_arrow.names, path)
    if kind == ".arrow":
        first = next(_arrow_pieces(path), None)
        return _unique(first.schema.names, path) if first is not None else []
    found: dict[str, None] = {}
    for names in _names_by_lines(path) if kind in LINES else json_rows(path, key):
        if not found.keys() >= set(names):
            found |= dict.fromkeys(names)
    return list(found)


def columns_of_all(paths: Sequence[Path]) -> list[str]:
    """The columns of all these tables."""
    return list(dict.fromkeys(name for path in paths for name in columns_of(path)))


def table_rows(path: Path) -> Iterator[TableRow]:
    """All rows of a table. Raises UserError."""
    for batch in table_batches(path):
        rows = batch.parsed
        for at in range(len(batch.cells)):
            yield f"{path.name} row {batch.first + at}", rows[at] if rows else fields_of(batch.cells, at)


def table_batches(path: Path, key: str = "") -> Iterator[TableBatch]:
    """The rows of a table, a few thousand at a time. `key` names the array of rows in a JSON object. Raises UserError."""
    kind = _kind(path)
    if kind in DELIMITED:
        yield from _delimited_batches(path)
    elif kind in LINES:
        yield from _line_batches(path)
    elif kind == ".json":
        yield from _json_batches(json_rows(path, key))
    else:
        yield from _arrow_batches(path)


def _kind(path: Path) -> str:
    """The suffix of a table. Raises UserError if the file is not a table."""
    kind = path.suffix.lower()
    if kind in SHEETS:
        made = path.with_suffix(".csv").name
        raise UserError(
            f"{path}: spreadsheets are not supported; save the sheet as 'CSV UTF-8', or: pip install pandas openpyxl; "
            f"python -c \"import pandas; pandas.read_excel('{path.name}').to_csv('{made}', index=False)\""
        )
    if kind in PACKED:
        raise UserError(f"{path}: compressed tables are not supported; unpack it first: {PACKED[kind]} {path.name}")
    if kind not in KINDS:
        raise UserError(f"{path}: a table must be .csv, .tsv, .json, .jsonl, .parquet or .arrow")
    return kind


def _delimiter(path: Path) -> str:
    """The delimiter: the most frequent of comma, semicolon, tab and bar in the header."""
    if path.suffix.lower() != ".csv":
        return "\t"
    with open_text(path) as lines:
        header = lines.readline(LONGEST_CELL)
    return max(",;\t|", key=header.count)


def _header(path: Path) -> list[str]:
    with _reading(path), open_text(path) as lines:
        return next(csv.reader(lines, delimiter=_delimiter(path), strict=True), [])


def _delimited_batches(path: Path) -> Iterator[TableBatch]:
    """Reads as far as possible with pyarrow, in a fifteenth of the time, and the rest with the csv module.

    Both read a regular table (`is_regular`) in the same way, and the csv module reports what is wrong with any other.
    """
    from pyarrow import ArrowException, string
    from pyarrow import csv as arrow

    header, delimiter, number = _header(path), _delimiter(path), 1
    if header and is_regular(path, delimiter):
        try:
            with arrow.open_csv(
                path,
                arrow.ReadOptions(use_threads=False, block_size=1 << 20),
                arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                arrow.ConvertOptions(column_types=dict.fromkeys(header, string())),
            ) as table:
                for batch in table if table.schema.names == header else ():
                    for at in range(0, len(batch), ROWS):
                        piece = batch.slice(at, ROWS)
                        yield TableBatch(number, piece)
                        number += len(piece)
                if table.schema.names == header:
                    return
        except ArrowException:
            pass  # a row with more or fewer cells than the header, text that is not UTF-8, a cell of a megabyte
    yield from _csv_batches(path, header, delimiter, number)


def _csv_batches(path: Path, header: Sequence[str], delimiter: str, number: int) -> Iterator[TableBatch]:
    """Reads with the csv module, from row `number` on. Raises UserError if a row has more or fewer cells than the header."""
    import pyarrow as pa

    with _reading(path), open_text(path) as lines:
        table = _filled(csv.reader(lines, delimiter=delimiter, strict=True), path)
        for _ in range(number):
            next(table, None)
        while rows := list(islice(table, ROWS)):
            for place, row in enumerate(rows):
                if len(row) != len(header):
                    raise UserError(
                        f"{path.name} row {number + place}: {len(row)} cells, but the header has {len(header)}; "
                        "put text that contains commas into double quotes"
                    )
            cells = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            yield TableBatch(number, pa.RecordBatch.from_arrays(cells, list(header)))
            number += len(rows)


def _filled(rows: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    """The header and the rows, without blank lines. Raises UserError with the number of an unreadable row."""
    number = 0
    try:
        for row in rows:
            if row:
                yield row
                number += 1
    except csv.Error as error:
        is_open = "unexpected end" in str(error)
        what = "a double quote opens a cell and is never closed" if is_open else f"not a row of a table: {error}"
        raise UserError(f"{path.name} row {number}: {what}") from None


def _pieces(path: Path) -> Iterator[tuple[Iterator[dict[str, Any]], tuple[pa.Array, pa.Table] | None]]:
    """JSONL in pieces: rows as objects, parsed on demand, and as the result of `parsed_lines`."""
    with reading_text(path), path.open("rb") as file:
        begins_plain = file.read(1) == b"{"
    if not begins_plain:  # a byte order mark, of UTF-16 or UTF-8
        yield json_lines(path), None
        return
    line = 1
    with reading_text(path):
        for piece in line_pieces(path):
            lines = io.StringIO(piece.decode(), newline="")
            yield objects_of(lines, path, line), parsed_lines(piece)
            line += piece.count(b"\n")


def _names_by_lines(path: Path) -> Iterator[Iterable[str]]:
    """The columns of JSONL, piece by piece or row by row."""
    for rows, parsed in _pieces(path):
        if parsed:
            yield parsed[1].column_names
        else:
            yield from rows


def _line_batches(path: Path) -> Iterator[TableBatch]:
    import pyarrow as pa

    number = 1
    for rows, parsed in _pieces(path):
        if parsed and are_exact(parsed[1].schema):
            cells = pa.RecordBatch.from_arrays([parsed[0]], [JSON])
            columns = parsed[1].combine_chunks().to_batches()[0]
            for at in range(0, len(cells), ROWS):
                yield TableBatch(number + at, cells.slice(at, ROWS), None, columns.slice(at, ROWS))
            number += len(cells)
        else:
            for batch in _json_batches(rows, number):
                yield batch
                number += len(batch.cells)


def _json_batches(rows: Iterator[dict[str, Any]], number: int = 1) -> Iterator[TableBatch]:
    import pyarrow as pa

    while some := list(islice(rows, ROWS)):
        texts = [ENCODE(row).encode("utf-8", "replace").decode() for row in some]
        yield TableBatch(number, pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], [JSON]), some)
        number += len(some)


class _reading:
    """Turns the csv module's exceptions into one line."""

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
        found = ParquetFile(path, memory_map=True)  # takes a third of the time and less than half the memory
        assert found.schema_arrow.names is not None, "damaged names are not UTF-8, which only reading them reveals"
    except (ArrowException, OSError, UnicodeError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error
    return found


def _arrow_pieces(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of Parquet, or of Arrow's stream or file format, which `datasets` writes. Raises UserError."""
    from pyarrow import ArrowException, ipc, memory_map

    try:
        if path.suffix.lower() in PARQUET:
            found = _parquet(path)
            for batch in found.iter_batches(batch_size=_rows_at_once(found)):
                batch.validate(full=True)
                yield _labelled(batch)
            return
        with memory_map(str(path)) as file:
            try:
                batches: Iterator[Any] = iter(ipc.open_stream(file))
            except ArrowException:
                file.seek(0)
                whole = ipc.open_file(file)
                batches = (whole.get_batch(number) for number in range(whole.num_record_batches))
            for batch in batches:
                batch.validate(full=True)  # Arrow follows damaged offsets even out of its memory
                yield _labelled(batch)
    except (ArrowException, OSError, UnicodeError) as error:
        kind = "Parquet" if path.suffix.lower() in PARQUET else "Arrow"
        raise UserError(f"{path}: not a valid {kind} file: {error}") from error


def _rows_at_once(parquet: Any) -> int:
    """Number of rows whose images total about a megabyte; malloc would request larger buffers from the system each time."""
    if "binary" not in str(parquet.schema_arrow):
        return ROWS
    groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups) // max(1, parquet.metadata.num_rows)
    return min(64, max(1, (1 << 20) // max(1, size)))


def _labelled(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, with numbers replaced by names in columns of the `datasets` type `ClassLabel`."""
    import pyarrow as pa

    names = batch.schema.names
    try:
        told = json.loads((batch.schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names_of = {column: kind["names"] for column, kind in told.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return batch
    columns = batch.columns
    for place, column in enumerate(names):
        if column in names_of and pa.types.is_integer(columns[place].type):
            numbers = columns[place].to_pylist()
            labels = dict(enumerate(names_of[column]))  # -1 means no label
            columns[place] = pa.array([labels.get(number) for number in numbers], pa.string())
    return pa.RecordBatch.from_arrays(columns, names) if names_of else batch


def _arrow_batches(path: Path) -> Iterator[TableBatch]:
    number = 1
    for piece in _arrow_pieces(path):
        rows = 64 if "binary" in str(piece.schema) else ROWS
        for at in range(0, len(piece), rows):
            batch = piece.slice(at, rows)
            yield TableBatch(number, batch)
            number += len(batch)


def _unique(header: Iterable[str], path: Path) -> list[str]:
    names = list(header)
    # `Caption` next to `caption` also counts as a repeated name.
    twice = [name for name, count in Counter(name.strip().lower() for name in names).items() if count > 1 and name]
    if twice:
        raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one, for example to {twice[0]}_2")
    return names

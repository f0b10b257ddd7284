"""Rows of a table by column; cells are interpreted when a row is needed, not when the table is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.readers import Row
from data_prep.readers.columns import Columns
from data_prep.readers.tables import TableBatch, fields_of, table_batches
from data_prep.web import is_url

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Meaning:
    """How to interpret the rows of a table."""

    table: str
    """Its name."""
    columns: Columns
    split: str = ""
    """The split of rows that name none."""
    beside: str = ""
    """The folder, below the image folder, that image paths are relative to."""

    def row(self, number: int, fields: dict[str, Any]) -> Row:
        """Row `number` of the table."""
        row = self.columns.row(f"{self.table} row {number}", fields, self.split)
        if self.beside:
            row = replace(row, images={role: self.image(value) for role, value in row.images.items()})
        return row

    def image(self, value: str | bytes) -> str | bytes:
        """The path of an image, relative to the image folder."""
        is_name = self.beside and isinstance(value, str) and value and not is_url(value) and not value.startswith("/")
        return f"{self.beside}/{value!s}" if is_name else value


@dataclass(frozen=True)
class RowBatch:
    """Consecutive rows of a table and their meaning."""

    meaning: Meaning
    table: TableBatch

    def __len__(self) -> int:
        return len(self.table.cells)

    def row(self, at: int) -> Row:
        """One of the rows."""
        parsed = self.table.parsed
        return self.meaning.row(self.table.first + at, parsed[at] if parsed else fields_of(self.table.cells, at))

    def rows(self) -> Iterator[Row]:
        return map(self.row, range(len(self)))

    def column(self, name: str) -> Sequence[Any] | pa.Array:
        """The cells of a column."""
        if self.table.parsed is not None:
            return [row.get(name) for row in self.table.parsed]
        cells = self.table.cells if self.table.columns is None else self.table.columns
        names = cells.schema.names
        # One of several tables may lack a column.
        return cells.column(names.index(name)) if name in names else [None] * len(self)

    def texts(self, name: str) -> pa.Array | None:
        """The cells of a column as an array of strings, or None if some are of another type."""
        import pyarrow as pa

        cells = self.column(name)
        if isinstance(cells, pa.Array):
            kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
            return cells.cast(pa.string()) if any(is_kind(cells.type) for is_kind in kinds) else None
        if all(cell is None or isinstance(cell, str) for cell in cells):
            return pa.array([cell and cell.encode("utf-8", "replace").decode() for cell in cells], pa.string())
        return None


def batches_of(path: Path, meaning: Meaning, key: str = "") -> Iterator[RowBatch]:
    """All rows of the table at `path`. Raises UserError."""
    return (RowBatch(meaning, batch) for batch in table_batches(path, key))

"""Stores rows between reading and writing, in Arrow files that each process maps into memory to read its own rows."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.facts import clean
from data_prep.readers import Row
from data_prep.readers.batches import Meaning, RowBatch
from data_prep.readers.columns import Columns
from data_prep.readers.tables import ENCODE, fields_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class Spooled:
    """Consecutive rows in one Arrow file: rows of a table as they are, others as JSON."""

    file: str
    meaning: Meaning | None
    number: int
    """Number of the first row in its table."""
    sizes: list[int]
    """Rows of each record batch."""

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "meaning": self.meaning and meaning_fields(self.meaning)}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Spooled:
        """From the result of `fields`."""
        if fields["meaning"]:
            meaning = dict(fields["meaning"])
            columns = Columns(meaning.pop("of"), meaning.pop("captions"), frozenset(meaning.pop("used")))
            fields = {**fields, "meaning": Meaning(columns=columns, **meaning)}
        return cls(**fields)


def meaning_fields(meaning: Meaning) -> dict[str, Any]:
    """The meaning of a table's cells, as JSON."""
    columns = meaning.columns
    return {
        **{"table": meaning.table, "split": meaning.split, "beside": meaning.beside},
        **{"of": dict(columns.of), "captions": list(columns.captions), "used": sorted(columns.used)},
    }


class SpoolWriter:
    """Writes rows to `<folder>/rows-<n>.arrow`, and images from inside the annotations to `<folder>/images`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[Spooled] = []
        self._writer: Any = None
        self._schema: pa.Schema | None = None
        self._images = (folder / "images").open("wb")

    def add_table(self, batch: RowBatch) -> None:
        """Adds rows of a table, as they are."""
        self._add(batch.table.cells, batch.meaning, batch.table.first)

    def add_rows(self, rows: Sequence[Row]) -> pa.RecordBatch:
        """Adds rows of any kind; returns what was written."""
        import pyarrow as pa

        texts = [clean(ENCODE({**vars(row), "images": self._stored(row)})) for row in rows]
        cells = pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], ["row"])
        self._add(cells, None, 0)
        return cells

    def _add(self, cells: pa.RecordBatch, meaning: Meaning | None, number: int) -> None:
        import pyarrow as pa

        last = self.parts[-1] if self.parts else None
        # Another table, or another file of the same table: row numbers start over.
        goes_on = last and last.meaning is meaning and cells.schema == self._schema
        if meaning and last and goes_on:
            goes_on = last.number + sum(last.sizes) == number
        if not goes_on:
            self._close_part()
            last = Spooled(f"rows-{len(self.parts)}.arrow", meaning, number, [])
            self.parts.append(last)
            self._schema = cells.schema
            self._writer = pa.ipc.new_file(str(self.folder / last.file), cells.schema)
        assert last is not None
        self._writer.write_batch(cells)
        last.sizes.append(len(cells))

    def _stored(self, row: Row) -> dict[str, str | list[int]]:
        found: dict[str, str | list[int]] = {}
        for role, value in row.images.items():
            found[role] = value if isinstance(value, str) else [self._images.tell(), len(value)]
            if isinstance(value, bytes):
                self._images.write(value)
        return found

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def close(self) -> None:
        self._close_part()
        self._images.close()


@dataclass(frozen=True)
class Spool:
    """The rows that a `SpoolWriter` wrote. Cheap to send to worker processes; `spool[n]` reads row `n`."""

    folder: Path
    parts: tuple[Spooled, ...]
    _open: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Spool, (self.folder, self.parts)

    @cached_property
    def _starts(self) -> list[int]:
        """The number of each part's first row."""
        return [0, *accumulate(sum(part.sizes) for part in self.parts)]

    def __getitem__(self, n: int) -> Row:
        place = bisect_right(self._starts, n) - 1
        part, at = self.parts[place], n - self._starts[place]
        starts = self._open.get(f"{part.file} starts")
        if starts is None:
            starts = self._open[f"{part.file} starts"] = [0, *accumulate(part.sizes)]
        batch = bisect_right(starts, at) - 1
        fields = fields_of(self._batch(part.file, batch), at - starts[batch])
        return part.meaning.row(part.number + at, fields) if part.meaning else self._row(json.loads(fields["row"]))

    def _batch(self, name: str, number: int) -> pa.RecordBatch:
        import pyarrow as pa

        if (name, number) not in self._open:
            if name not in self._open:
                self._open[name] = pa.ipc.open_file(pa.memory_map(str(self.folder / name)))
            self._open[name, number] = self._open[name].get_batch(number)
        return self._open[name, number]

    def _row(self, fields: dict[str, Any]) -> Row:
        if "images" not in self._open:
            self._open["images"] = os.open(self.folder / "images", os.O_RDONLY)
        images = {
            role: value if isinstance(value, str) else os.pread(self._open["images"], value[1], value[0])
            for role, value in fields.pop("images").items()
        }
        captions, turns = tuple(fields.pop("captions")), tuple(fields.pop("conversations"))
        return Row(images=images, captions=captions, conversations=turns, **fields)

"""Plans all rows of a data set: reads them once, assigns ids, merges repeated rows, compares splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep.chunks import digest
from data_prep.facts import key_fingerprint, path_ids, row_facts, table_facts
from data_prep.groups import held_out, image_groups
from data_prep.ids import Ids, taken
from data_prep.image_source import ImageSource
from data_prep.leakage import Leakage, SplitImages, compare
from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.batches import RowBatch
from data_prep.splits import check_split
from data_prep.spool import Spool, Spooled, SpoolWriter, meaning_fields
from data_prep.text_columns import are_different, codes, ends_and_bytes, have_different_ids
from data_prep.without_pandas import hide_pandas
from onediff.errors import UserError
from onediff.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = NDArray[np.int64]
AT_ONCE = 64
"""Number of rows of a row-by-row reader that are written together; they may hold images."""


@dataclass(frozen=True)
class Choices:
    """The user's choices about splits; see `convert`."""

    splits: Sequence[str] = ()
    hold_out: float = 0.0
    hold_out_by: str | None = None
    allow_leakage: bool = False


@dataclass
class PlannedSplit:
    """The samples of one split."""

    rows: Numbers
    """The row number of each sample."""
    merged: Numbers
    """`[repeated rows, 2]`: a sample, and the number of a row whose captions it also gets; sorted."""
    marks: NDArray[np.int8]
    """A mark per sample for images shared with another split (`data_prep.leakage`)."""
    ids: dict[int, str]
    """The ids of samples whose default ids are already taken."""
    inputs: str
    """Digest of the rows."""
    leakage: dict[str, dict[str, int]]
    """Number of samples that share all their images, or one, with another split, by its name."""


def plan_rows(
    reader: Reader, inputs: Inputs, image_source: ImageSource, choices: Choices, folder: Path
) -> tuple[tuple[Spooled, ...], dict[str, PlannedSplit]]:
    """Reads all rows into `folder` and assigns them to samples and splits, `train` first. Raises UserError."""
    hide_pandas()
    read = _Reading(reader, inputs, image_source, choices, folder)
    facts = read.everything()
    spool = Spool(folder, tuple(read.spool.parts))
    rows = _Numbered(facts, lambda number: read.plain(spool[number]))
    rows.give_ids()
    heads, merged = rows.samples()
    of_split = {name: heads[rows.split[heads] == code] for code, name in enumerate(rows.names)}
    digests = {name: read.digests[name].hexdigest() for name in rows.names}
    if choices.hold_out:
        _hold_out(of_split, digests, rows, choices)
    names = sorted(of_split, key=lambda name: (name != "train", name))

    def refuse(name: str, sample: int) -> None:
        if not (choices.allow_leakage or reader.published):
            raise _leak(rows.row(int(of_split[name][sample])), name)

    marks = {name: np.zeros(len(own), dtype=np.int8) for name, own in of_split.items()}
    leakage: Leakage = {name: {} for name in names}
    if len(names) > 1:
        marks, leakage = compare({name: rows.images_of(of_split[name]) for name in names}, refuse)
    planned = {}
    for name in names:
        own = of_split[name]
        sample_of = dict(zip(own.tolist(), range(len(own)), strict=True)) if len(merged) or rows.ids else {}
        pairs = sorted((sample_of[head], row) for head, row in merged if head in sample_of)
        ids = {sample_of[row]: id for row, id in rows.ids.items() if row in sample_of}
        together = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        planned[name] = PlannedSplit(own, together, marks[name], ids, digests[name], leakage[name])
    return spool.parts, planned


class _Reading:
    """Reads the rows into the spool."""

    def __init__(
        self, reader: Reader, inputs: Inputs, image_source: ImageSource, choices: Choices, folder: Path
    ) -> None:
        self.reader, self.inputs, self.image_source, self.choices = reader, inputs, image_source, choices
        if inputs.images:
            image_source.open()  # refuses a bad archive before any row is read
        for path in folder.iterdir():
            if path.name != "lock":
                path.unlink()
        self.spool = SpoolWriter(folder)
        self.digests: dict[str, Any] = {}
        """SHA-256 of the rows of each split."""

    def everything(self) -> pa.Table:
        """The facts of all rows. Raises UserError."""
        import pyarrow as pa

        found = []
        try:
            with progress(None, f"{self.reader.name}: reading rows", "rows") as bar:
                for batch in self.batches():
                    facts = self.added(batch)
                    found.append(facts)
                    bar.update(len(facts))
        finally:
            self.spool.close()
        if not found:
            raise UserError(f"{self.inputs.annotations or self.inputs.images}: there are no rows")
        return pa.Table.from_batches(found)

    def batches(self) -> Iterator[RowBatch | list[Row]]:
        if self.reader.batches:
            yield from self.reader.batches(self.inputs)
            return
        rows = iter(self.reader.rows(self.inputs))
        while some := list(islice(rows, AT_ONCE)):
            yield some

    def added(self, batch: RowBatch | list[Row]) -> pa.RecordBatch:
        """Stores the rows of a batch; returns their facts."""
        place, group = self.image_source.place, self.choices.hold_out_by
        facts = table_facts(batch, place, group) if isinstance(batch, RowBatch) else None
        if facts is not None and isinstance(batch, RowBatch):
            self.check_splits(facts, lambda at: f"{batch.meaning.table} row {batch.table.first + at}")
            self.spool.add_table(batch)
            self.digest(facts, batch.table.cells.columns, repr(meaning_fields(batch.meaning)))
            return facts
        rows = [self.plain(row) for row in (batch.rows() if isinstance(batch, RowBatch) else batch)]
        facts = row_facts(rows, group)
        self.check_splits(facts, lambda at: rows[at].where)
        self.digest(facts, [*self.spool.add_rows(rows), facts.column("first"), facts.column("second")], "")
        return facts

    def plain(self, row: Row) -> Row:
        """The row with the paths of its images in plain form."""
        images = self.image_source.placed(row.images, row.where)
        return replace(row, images=images, split=row.split or "train")

    def check_splits(self, facts: pa.RecordBatch, where: Callable[[int], str]) -> None:
        for name in facts.column("split").unique().to_pylist():
            if name not in self.digests:
                check_split(name, where(facts.column("split").index(name).as_py()), self.choices.splits)
                self.digests[name] = hashlib.sha256()

    def digest(self, facts: pa.RecordBatch, columns: Sequence[pa.Array], meaning: str) -> None:
        import pyarrow.compute as pc

        names = facts.column("split").unique().to_pylist()
        for name in names:
            self.digests[name].update(meaning.encode("utf-8", "replace"))
            own = pc.equal(facts.column("split"), name) if len(names) > 1 else None
            for column in columns:
                for part in _content(column if own is None else column.filter(own)):
                    self.digests[name].update(part)


def _content(column: pa.Array) -> tuple[Any, ...]:
    """Buffers that identify a column's values."""
    import pyarrow as pa

    if pa.types.is_string(column.type) and not column.null_count:
        ends, data = ends_and_bytes(column)
        return np.diff(ends), data
    return (repr(column.to_pylist()).encode("utf-8", "replace"),)


class _Numbered:
    """The facts of all rows, as numbers."""

    def __init__(self, facts: pa.Table, row: Callable[[int], Row]) -> None:
        import pyarrow.compute as pc

        self.facts, self.row = facts, row
        splits = _one(facts["split"]).dictionary_encode()
        self.names: list[str] = splits.dictionary.to_pylist()
        self.split = splits.indices.to_numpy().astype(np.int64)
        first, second = (pc.not_equal(facts[name], "") for name in ("first", "second"))
        self.complete = _array(pc.and_(first.fill_null(False), second.fill_null(True)))
        """Whether each row has all its images."""
        self.ids: dict[int, str] = {}
        """The ids of rows whose default ids are already taken."""

    @cached_property
    def image_codes(self) -> tuple[Numbers, Numbers]:
        """Numbers that identify the first and second image of each row, -1 for none. Computed only to compare rows."""
        found = codes(self._images)
        return found[: len(self.facts)], found[len(self.facts) :]

    @cached_property
    def images(self) -> Numbers:
        """A number that identifies all images of each row."""
        first, second = self.image_codes
        return (first + 1) << 32 | (second + 1)

    @cached_property
    def _images(self) -> pa.Array:
        return _one(self.facts["first"], self.facts["second"])

    def images_of(self, rows: Numbers) -> SplitImages:
        """The images of some rows."""
        first, second = self.image_codes
        return SplitImages(first[rows], second[rows], self.complete[rows])

    def image_keys(self) -> list[str]:
        """The key of each image, by its number."""
        numbers = np.concatenate(self.image_codes)
        place = np.zeros(numbers.max(initial=-1) + 1, dtype=np.int64)
        place[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
        found: list[str] = self._images.take(place).to_pylist()
        return found

    def flags(self, name: str) -> NDArray[np.bool_]:
        return _array(self.facts[name])

    def give_ids(self) -> None:
        """Makes ids unique within a split. Raises UserError if the table's own ids are not."""
        if self.are_unique:
            return
        has_id = self.flags("has_id")
        counts = ~has_id | (self.complete & ~self.flags("has_turns"))
        rows = np.flatnonzero(counts)
        pair_of = np.zeros(self.id.max(initial=-1) + 1, dtype=np.int64)
        pair_of[self.id[rows]] = self.images[rows]
        if (pair_of[self.id[rows]] == self.images[rows]).all():
            return
        ids, given = Ids(), self._ids.to_pylist()
        for number in rows.tolist():
            split, images = self.names[self.split[number]], int(self.images[number])
            if ids.is_free(split, given[number], images):
                continue
            row = self.row(number)
            if has_id[number]:
                raise taken(row)
            self.ids[number] = ids.given(row, images)
        if self.ids:
            import pyarrow as pa

            for number, id in self.ids.items():
                given[number] = id
            self.id = codes(pa.array(given, pa.string())) * len(self.names) + self.split

    @cached_property
    def id(self) -> Numbers:
        """A number that identifies the split and id of each row."""
        return codes(self._ids) * len(self.names) + self.split

    @cached_property
    def are_unique(self) -> bool:
        """Whether the facts have unique ids in each split."""
        are_made = self.facts["id"].null_count == len(self.facts)
        if are_made and have_different_ids(self.facts["second"], self.facts["first"]):
            return True
        return are_different(self._ids) or int(np.bincount(self.id).max(initial=0)) < 2

    @cached_property
    def _ids(self) -> pa.Array:
        """The id of each row as text."""
        import pyarrow as pa

        return pa.concat_arrays(
            [
                path_ids({"before": batch["second"], "after": batch["first"]})
                if batch["id"].null_count
                else batch["id"]
                for batch in self.facts.to_batches()
            ]
        )

    def samples(self) -> tuple[Numbers, list[tuple[int, int]]]:
        """The rows that become samples, and `(sample's row, row)` for each row merged into an earlier one."""
        if self.are_unique:
            return np.arange(len(self.facts)), []
        images = np.unique(self.images, return_inverse=True)[1]
        _, place, inverse = np.unique(self.id * (len(images) + 1) + images, return_index=True, return_inverse=True)
        first = place[inverse]
        repeated = np.flatnonzero(first != np.arange(len(first)))
        if not len(repeated):
            return np.arange(len(first)), []
        is_sample = np.ones(len(first), dtype=bool)
        has_captions, newest, merged = self.flags("has_captions"), dict[int, int](), []
        for row, head in zip(repeated.tolist(), first[repeated].tolist(), strict=True):
            if has_captions[row]:
                merged.append((newest.get(head, head), row))
                is_sample[row] = False
            else:
                newest[head] = row
        return np.flatnonzero(is_sample), merged


def _one(*columns: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    return pa.concat_arrays([chunk for column in columns for chunk in column.chunks])


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    found: NDArray[Any] = column.to_numpy()
    return found


def _hold_out(of_split: dict[str, Numbers], digests: dict[str, str], rows: _Numbered, choices: Choices) -> None:
    """Moves a fraction of `train` to `test`, keeping pairs that belong together in one split."""
    train = of_split.get("train", np.zeros(0, dtype=np.int64))
    groups: Sequence[str | bytes] = rows.facts["group"].take(train).to_pylist() if choices.hold_out_by else []
    if choices.hold_out_by and not any(groups):
        raise UserError(f"--hold-out-by {choices.hold_out_by}: no row of the split train has this column")
    if not groups:
        prints = [key_fingerprint(key) for key in rows.image_keys()]
        first, second = rows.image_codes
        groups = image_groups(
            [
                tuple(prints[code] for code in (first[row], second[row]) if code >= 0) if rows.complete[row] else ()
                for row in train
            ]
        )
    moved = held_out(groups, choices.hold_out)
    if len(train) and not moved:
        raise UserError(
            f"--hold-out {choices.hold_out:g}: all pairs are connected by shared images; group them with "
            "--hold-out-by COLUMN, or add a column split to the table"
        )
    is_moved = np.isin(np.arange(len(train)), sorted(moved))
    test = np.concatenate([of_split.get("test", train[:0]), train[is_moved]])
    made_of = [digests.get("train"), digests.get("test")]
    of_split["train"], of_split["test"] = train[~is_moved], test
    for name in ("train", "test"):
        digests[name] = digest([*made_of, hashlib.sha256(of_split[name].tobytes()).hexdigest()])


def _leak(row: Row, name: str) -> UserError:
    shown = [value if isinstance(value, str) else f"{len(value)} bytes" for value in row.images.values()]
    return UserError(
        f"{row.where}: the same image{'s' * (len(shown) > 1)} ({', '.join(shown)}) in the splits train and "
        f"{name}; fix the rows or add --allow-leakage"
    )

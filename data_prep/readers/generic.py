"""Your own table, in any format of `tables`, with the columns before, after, one or more captions, and split."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.batches import Meaning, RowBatch, batches_of
from data_prep.readers.columns import Columns
from data_prep.readers.tables import columns_of


def batches(inputs: Inputs) -> Iterator[RowBatch]:
    table = inputs.annotation("pairs.csv", "pairs.jsonl", "pairs.parquet")
    named = {meaning: name for meaning, name in inputs.columns.items() if meaning != "rows"}
    key = inputs.columns.get("rows", "")
    if header := columns_of(table, key):
        yield from batches_of(table, Meaning(table.name, Columns.found(header, named, table)), key)


def rows(inputs: Inputs) -> Iterator[Row]:
    return (row for batch in batches(inputs) for row in batch.rows())


READER = Reader(
    name="generic",
    summary="your own table of pairs (before, after, caption) or of images (image, caption)",
    source="",
    licence="",
    layout="--table pairs.csv (or .tsv, .json, .jsonl, .parquet, .arrow) with before, after, caption…, split; images "
    "next to it, in --images, in archives there (ARCHIVE#MEMBER), or by URL (--fetch)",
    rows=rows,
    batches=batches,
)

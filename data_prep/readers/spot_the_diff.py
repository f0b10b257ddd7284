"""Spot-the-Diff: pairs of frames from surveillance videos, one sentence per difference."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import field_of, json_array, sentences_of


def rows(inputs: Inputs) -> Iterator[Row]:
    for file in inputs.split_files("train.json", "val.json", "test.json"):
        for number, row in enumerate(json_array(file), 1):
            where = f"{file.name} row {number}"
            name = str(field_of(row, "img_id", where))
            yield Row(
                where,
                name,
                split_name(file.stem),
                {"before": f"{name}.png", "after": f"{name}_2.png"},
                sentences_of(row, "sentences", where),
            )


READER = Reader(
    name="spot-the-diff",
    summary="street camera pairs, 13k, one sentence per difference",
    source="https://github.com/harsh19/spot-the-diff",
    licence="not stated",
    layout="--annotations DIR/{train,val,test}.json with img_id and sentences; --images DIR/<img_id>.png, <img_id>_2.png",
    rows=rows,
    published=True,
)

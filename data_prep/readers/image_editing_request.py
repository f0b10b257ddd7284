"""Image-Editing-Request: photographs that people on Reddit and Zhopped edited on request, with the text of the request."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import field_of, json_array, sentences_of


def rows(inputs: Inputs) -> Iterator[Row]:
    for file in inputs.split_files("train.json", "valid.json", "test.json"):
        for number, row in enumerate(json_array(file), 1):
            where = f"{file.name} row {number}"
            yield Row(
                where,
                str(field_of(row, "uid", where)),
                split_name(file.stem),
                {"before": field_of(row, "img0", where), "after": field_of(row, "img1", where)},
                sentences_of(row, "sents", where),
            )


READER = Reader(
    name="image-editing-request",
    summary="photographs edited on request, 4k pairs",
    source="https://github.com/airsplay/VisualRelationships",
    licence="not stated",
    layout="--annotations DIR/{train,valid,test}.json with img0, img1, sents, uid; --images DIR/<img0>, <img1>",
    rows=rows,
    published=True,
)

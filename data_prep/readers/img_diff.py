"""Img-Diff: generated images with one object replaced or removed, and questions about that part of the images."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.cells import turns
from data_prep.readers.files import field_of, json_array


def rows(inputs: Inputs) -> Iterator[Row]:
    file = inputs.annotation("img_diff_object_replacement.json", "img_diff_object_removal.json")
    change = "remove" if "removal" in file.name else "replace"
    for number, row in enumerate(json_array(file), 1):
        where = f"{file.name} row {number}"
        path = str(field_of(row, "path", where))
        said = turns(field_of(row, "conversations", where), where)
        question = next((turn["value"] for turn in said if turn["from"] == "human"), "")
        yield Row(
            where,
            f"{path}-{number}",  # a pair has several differing parts, each with its own question
            "train",
            {"before": f"{path}_0.jpg", "after": f"{path}_1.jpg"},
            tuple(turn["value"] for turn in said if turn["from"] == "gpt")[:1],
            instruction=question.replace("<image>", "").strip() or None,
            meta={"change_type": change, "box": str(row.get("bbox", ""))},
        )


READER = Reader(
    name="img-diff",
    summary="generated images with one object replaced or removed, 13k questions about the part that differs",
    source="https://huggingface.co/datasets/datajuicer/Img-Diff",
    licence="Apache-2.0",
    layout="--annotations img_diff_object_replacement.json (or …_removal.json) with path, bbox, conversations; --images DIR/"
    "<path>_0.jpg, <path>_1.jpg (files as listed on the data set's page, fields as read by public code)",
    rows=rows,
    published=True,
)

"""LLaVA-665K: conversations about images from several data sets, and conversations without images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.cells import turns
from data_prep.readers.files import field_of, json_array
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    file = inputs.annotation("llava_v1_5_mix665k.json")
    for number, row in enumerate(json_array(file), 1):
        where = f"{file.name} row {number}"
        image = row.get("image")
        if not isinstance(image, (str, type(None))):
            raise UserError(f"{where}: field 'image' must be a path")
        yield Row(
            where,
            str(row.get("id", number)),
            "train",
            {"image": image} if image else {},
            conversations=conversation(row, where),
            meta={"folder": image.split("/")[0]} if image else {},
        )


def conversation(row: dict[str, Any], where: str) -> tuple[dict[str, str], ...]:
    """The turns of a row, from the first question on. Raises UserError for other formats."""
    return turns(field_of(row, "conversations", where), where)


READER = Reader(
    name="llava-665k",
    summary="conversations about images, 665k, 40k of them text only",
    source="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    licence="CC BY 4.0; images under their own data sets' terms",
    layout="--annotations llava_v1_5_mix665k.json; --images DIR/{coco/train2017,gqa/images,ocr_vqa/images,"
    "textvqa/train_images,vg/VG_100K,vg/VG_100K_2}/…",
    rows=rows,
    published=True,
)

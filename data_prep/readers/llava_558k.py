"""LLaVA-558K: single images with one caption each, for phase one."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.files import json_array
from data_prep.readers.llava_665k import conversation
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    file = inputs.annotation("blip_laion_cc_sbu_558k.json")
    for number, row in enumerate(json_array(file), 1):
        where = f"{file.name} row {number}"
        if not isinstance(row.get("image"), str):
            raise UserError(f"{where}: no field 'image'; for text-only rows use the reader llava-665k")
        turns = conversation(row, where)
        asked = next((turn["value"] for turn in turns if turn["from"] == "human"), "")
        yield Row(
            where,
            str(row.get("id", number)),
            "train",
            {"image": row["image"]},
            tuple(turn["value"] for turn in turns if turn["from"] == "gpt")[:1],
            meta={"asked": asked.replace("<image>", "").strip()},
        )


READER = Reader(
    name="llava-558k",
    summary="single images with a short caption, 558k",
    source="https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
    licence="see the data set's page (LAION, CC, SBU)",
    layout="--annotations blip_laion_cc_sbu_558k.json; --images DIR (images.zip, or unpacked: 00000/000000010.jpg)",
    rows=rows,
    published=True,
)

"""RSCC: aerial images before and after a disaster, with long captions by language models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.files import field_of, json_lines
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    base = inputs.annotations
    if base is None:
        raise UserError("--annotations: name the .jsonl file of captions, or a folder of such files")
    files = [base] if base.is_file() else sorted(base.glob("*.jsonl"))
    if not files:
        raise UserError(f"{base}: no .jsonl file here")
    for file in files:
        for number, row in enumerate(json_lines(file), 1):
            where = f"{file.name} line {number}"
            before, after = (_below(str(field_of(row, name, where))) for name in ("pre_image", "post_image"))
            meta = {"model": row["model"]} if isinstance(row.get("model"), str) else {}
            caption = str(field_of(row, "change_caption", where))
            yield Row(where, "", "train", {"before": before, "after": after}, (caption,), meta=meta)


def _below(path: str) -> str:
    """The path relative to the image folder; the published files have the paths of the authors' machine."""
    parts = Path(path).parts
    start = next((place for place, part in enumerate(parts) if part in ("EBD", "xbd", "xbdsubset", "xbd_subset")), 0)
    return "/".join(parts[start:])


READER = Reader(
    name="rscc",
    summary="aerial images before and after disasters, 62k pairs, captions of 70 words by language models",
    source="https://huggingface.co/datasets/BiliSakura/RSCC",
    licence="CC BY 4.0; images under the terms of xBD and EBD",
    layout="--annotations FILE.jsonl with pre_image, post_image, change_caption; --images DIR/{EBD,xbd,xbdsubset}/… (as the "
    "authors' evaluation code reads it: github.com/Bili-Sakura/RSCC)",
    rows=rows,
    published=True,
)

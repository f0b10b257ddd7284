"""MagicBrush: photographs that people edited with an image model, in sessions of up to three turns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import field_of, json_array
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    base = inputs.annotations or inputs.images
    if base is None or not base.is_dir():
        raise UserError("--annotations: name the folder with train/edit_turns.json and dev/edit_turns.json")
    inside = (base / "edit_turns.json").is_file()
    folders = [base] if inside else [base / split for split in ("train", "dev", "test")]
    folders = [folder for folder in folders if (folder / "edit_turns.json").is_file()]
    if not folders:
        raise UserError(f"{base}: no train/edit_turns.json or dev/edit_turns.json here")
    for folder in folders:
        yield from turn_rows(folder, Path() if inside else Path(folder.name))


def turn_rows(folder: Path, below: Path) -> Iterator[Row]:
    """The edit turns of one split; their images are in `below/images/<image id>/`."""
    for number, row in enumerate(json_array(folder / "edit_turns.json"), 1):
        where = f"{folder.name}/edit_turns.json row {number}"
        before, after = (str(field_of(row, name, where)) for name in ("input", "output"))
        photo = after.split("-")[0]
        yield Row(
            where,
            after.rsplit(".", 1)[0],
            split_name(folder.name) if below.name else "train",
            {"before": str(below / "images" / photo / before), "after": str(below / "images" / photo / after)},
            (str(field_of(row, "instruction", where)),),
            meta={"photo": photo, "mask": row.get("mask", "")},
        )


READER = Reader(
    name="magicbrush",
    summary="edited photographs, 10k edit turns; the caption is the edit instruction",
    source="https://github.com/OSU-NLP-Group/MagicBrush",
    licence="CC BY 4.0",
    layout="--annotations DIR and --images DIR, with DIR/{train,dev}/{edit_turns.json,images/<id>/<id>-….png}",
    rows=rows,
    published=True,
)

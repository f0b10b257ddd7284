"""InstructPix2Pix: generated edits, one folder per edit, several pairs per edit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.files import field_of, json_lines, load_json
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    base = inputs.images or inputs.annotations
    if base is None or not base.is_dir():
        raise UserError("--images: name the folder of edits, each a folder with prompt.json, metadata.jsonl and images")
    folders = [base] if (base / "prompt.json").is_file() else sorted(path for path in base.iterdir() if is_edit(path))
    if not any((folder / "prompt.json").is_file() for folder in folders):
        raise UserError(f"{base}: no folder here has a prompt.json")
    for folder in folders:
        try:
            yield from list(edit_rows(folder, base))
        except UserError as error:
            # Thousands of the published folders are incomplete.
            yield Row(folder.name, folder.name, "train", {}, fault=str(error))


def is_edit(folder: Path) -> bool:
    """Whether a folder holds an edit, complete or not."""
    return (folder / "prompt.json").is_file() or (folder / "metadata.jsonl").is_file()


def edit_rows(folder: Path, base: Path) -> Iterator[Row]:
    """The pairs of one edit. Raises UserError for an incomplete folder."""
    prompt = load_json(folder / "prompt.json")
    where = f"{folder.name}/prompt.json"
    edit = str(field_of(prompt, "edit", where))
    meta = {"caption_before": prompt.get("input", ""), "caption_after": prompt.get("output", "")}
    for number, row in enumerate(json_lines(folder / "metadata.jsonl"), 1):
        seed = field_of(row, "seed", f"{folder.name}/metadata.jsonl line {number}")
        stem = (folder / str(seed)).relative_to(base)
        scores = {name: value for name, value in row.items() if name.startswith("sim_")}
        yield Row(
            f"{folder.name}/metadata.jsonl line {number}",
            f"{folder.name}-{seed}",
            "train",
            {"before": f"{stem}_0.jpg", "after": f"{stem}_1.jpg"},
            (edit,),
            meta={**meta, "edit": edit, **scores},
        )


READER = Reader(
    name="instruct-pix2pix",
    summary="generated edits, 454k edits, several pairs per edit; the caption is the edit instruction",
    source="https://github.com/timothybrooks/instruct-pix2pix",
    licence="MIT; images by Stable Diffusion (CreativeML Open RAIL-M)",
    layout="--images DIR/<edit>/{prompt.json,metadata.jsonl,<seed>_0.jpg,<seed>_1.jpg}",
    rows=rows,
    published=True,
)

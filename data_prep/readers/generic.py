"""A table of your own: CSV, TSV, JSON, JSONL or Parquet with the columns before, after, one or more captions, split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.cells import image, plain, texts, word
from data_prep.readers.tables import columns_of, table_rows
from onediff.errors import UserError

# Columns with a meaning, and other names that tables use for them.
COLUMNS = {
    "before": ("before", "image_before", "img0", "source", "source_img", "original_image"),
    "after": ("after", "image_after", "img1", "target", "target_img", "edited_image"),
    "image": ("image", "picture", "file"),
    "captions": ("captions", "caption", "sentences", "text", "description"),
    "split": ("split",),
    "id": ("id", "uid", "key"),
    "instruction": ("instruction",),
    "change_type": ("change_type",),
}

TOLD = {"edit", "caption_before", "caption_after"}
"""Columns from which `onediff data caption` makes captions: a table that has one may lack the captions themselves."""


def rows(inputs: Inputs) -> Iterator[Row]:
    table = inputs.annotation("pairs.csv", "pairs.jsonl", "pairs.parquet")
    header = columns_of(table)
    if not header:
        return
    columns = meanings(header, inputs.columns, table)
    caption_columns = captions_in(header, columns)
    if not caption_columns and not TOLD.intersection(header):
        raise UserError(f"{table}: no column 'caption'; it has {', '.join(header)} (--columns caption=NAME)")
    for where, fields in table_rows(table):
        yield table_row(where, fields, columns, caption_columns)


def table_row(where: str, fields: dict[str, Any], columns: dict[str, str], caption_columns: list[str]) -> Row:
    """One row, with whatever images and captions it has."""
    roles = ("image",) if "image" in columns else ("before", "after")
    images = {role: image(fields.get(columns[role])) for role in roles}
    captions = [text for name in caption_columns for text in texts(fields.get(name), where)]
    told = {
        name: word(fields.get(columns[name]))
        for name in ("split", "id", "instruction", "change_type")
        if name in columns
    }
    used = {*columns.values(), *caption_columns}
    other = {name: value for name, value in fields.items() if name not in used and plain(value)}
    change = {"change_type": told["change_type"]} if told.get("change_type") else {}
    return Row(
        where,
        told.get("id", ""),
        split_name(told.get("split", "")),
        images,
        tuple(captions),
        instruction=told.get("instruction") or None,
        meta={**other, **change},
    )


def meanings(header: list[str], named: dict[str, str], table: Path) -> dict[str, str]:
    """`meaning → column`, by the user's names first. Raises UserError when there are no images in the table."""
    folded = {name.strip().lower(): name for name in header if name}
    taken = [name for name in named.values() if name]
    if len(set(taken)) < len(taken):
        raise UserError(f"--columns: {max(taken, key=taken.count)} stands for two things; a column is one")
    columns = {}
    for meaning, guesses in COLUMNS.items():
        given = named.get(meaning, named.get("caption") if meaning == "captions" else None)
        if given == "":
            continue  # the user says that there is none
        if given and given not in header:
            raise UserError(f"{table}: no column {given!r}; it has {', '.join(header)}")
        found = given or next((folded[guess] for guess in guesses if folded.get(guess, "") not in ("", *taken)), None)
        if found:
            columns[meaning] = found
    if "before" in columns and "after" in columns:
        columns.pop("image", None)
    elif "image" not in columns:
        lacking = "after" if "before" in columns else "before"
        raise UserError(
            f"{table}: no column {lacking!r}; it has {', '.join(map(str, header))} (--columns {lacking}=NAME)"
        )
    return columns


def captions_in(header: list[str], columns: dict[str, str]) -> list[str]:
    """All caption columns: the named one, and `caption_1`, `caption2`, … beside it."""
    first = [columns["captions"]] if "captions" in columns else []
    numbered = [name for name in header if name and name.lower().rstrip("0123456789").rstrip("_") == "caption"]
    return list(dict.fromkeys(first + numbered))


READER = Reader(
    name="generic",
    summary="your own table of pairs (before, after, caption) or of images (image, caption)",
    source="",
    licence="",
    layout="--table pairs.csv (or .tsv, .json, .jsonl, .parquet) with before, after, caption…, split; images beside it, "
    "in --images, in archives there (ARCHIVE#MEMBER), or by URL (--fetch)",
    rows=rows,
)

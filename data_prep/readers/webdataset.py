"""WebDataset tars by other tools, such as img2dataset: the `jpg`, `txt` and `json` of one key form a row of a table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.image_source import SUFFIXES
from data_prep.readers import Inputs, Reader, Row
from data_prep.readers.columns import Columns
from data_prep.readers.files import DECODER, PACKED
from data_prep.splits import split_in
from onediff.data.index import scan_members
from onediff.errors import UserError

IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
FAULT = "fault of this sample"
"""The column that replaces unreadable cells."""

Cells = dict[str, Any]


def rows(inputs: Inputs) -> Iterator[Row]:
    base = inputs.annotations
    if base is None or not base.exists():
        raise UserError("--annotations: name the folder of tars, or one tar")
    root = inputs.images or (base if base.is_dir() else base.parent)
    named = {meaning: _column(name) for meaning, name in inputs.columns.items()}
    groups = _groups(base, named)
    ends = {role: name for role, name in named.items() if name[:1] in ("_", "-")}
    plain = {meaning: name for meaning, name in named.items() if not name.endswith(".tar") and meaning not in ends}
    # Read all tars once to find the columns: a split or a second caption may first appear in the last one.
    found: dict[str, Any] = {}
    for group in groups:
        for _, cells in _samples(group, root, ends):
            for column, cell in cells.items():
                found.setdefault(column, cell)
    header = [column for column in found if column != FAULT]
    if not header:
        raise UserError(f"{base}: there are no samples{f'; {found[FAULT]}' if found else ''}")
    columns = Columns.found(header, plain, base)
    for group in groups:
        tar = next(iter(group.values()))
        name = tar.relative_to(root) if tar.is_relative_to(root) else Path(tar.name)
        split = split_in(str(name))
        for key, cells in _samples(group, root, ends):
            where, id = f"{name} {key}", f"{name.with_suffix('')}/{key}"  # keys are unique only within a tar
            if FAULT in cells:
                yield Row(where, id, split, {}, fault=cells[FAULT])
            else:
                row = columns.row(where, cells, split)
                yield row if row.id else replace(row, id=id)


def _groups(base: Path, named: Mapping[str, str]) -> list[dict[str, Path]]:
    """The tars to read side by side, by the role that the user assigned to them. Raises UserError."""
    given = {role: name for role, name in named.items() if name.endswith(".tar")}
    if given:
        lists = {role: sorted(base.glob(name)) for role, name in given.items()}
        counts = {role: len(tars) for role, tars in lists.items()}
        if 0 in counts.values() or len(set(counts.values())) > 1:
            raise UserError(f"{base}: the roles need equal numbers of tars to read side by side: {counts}")
        return [dict(zip(lists, tars, strict=True)) for tars in zip(*lists.values(), strict=True)]
    files = [base] if base.is_file() else sorted(path for path in base.rglob("*") if path.is_file())
    for path in files:
        if path.suffix in PACKED and ".tar" in path.name + path.suffix.replace("tgz", "tar"):
            raise UserError(
                f"{path}: a compressed tar has no random access; unpack it first: {PACKED[path.suffix]} {path}"
            )
    tars = [path for path in files if path.suffix == ".tar"]
    if not tars:
        raise UserError(f"{base}: no tars here")
    return [{"": tar} for tar in tars]


def _samples(group: Mapping[str, Path], root: Path, ends: Mapping[str, str]) -> Iterator[tuple[str, Cells]]:
    """`(key, cells)` of tars read side by side."""
    found: dict[str, Cells] = {}
    for role, tar in group.items():
        damage: list[str] = []
        with tar.open("rb") as file:
            for name, offset, size in scan_members(file.fileno(), damage):
                key, column, kind = _parts(name.removeprefix("./"), ends)
                if column == "image" and role:
                    column = role
                cells = found.setdefault(key, {})
                if kind in IMAGES:
                    if column in cells:
                        cells[FAULT] = f"{tar.name} {name}: a second image for {column!r}"
                    cells[column] = f"{tar.relative_to(root)}#{name.removeprefix('./')}"
                elif kind in ("json", "txt"):
                    _put_text(cells, os.pread(file.fileno(), size, offset), kind, f"{tar.name} {name}")
        if damage:
            found[damage[0]] = {FAULT: f"{tar.name}: {damage[0]}"}
    yield from found.items()


def _parts(name: str, ends: Mapping[str, str]) -> tuple[str, str, str]:
    """Key, column and kind of a member: `a.b.before.jpg` is the image `before` of the key `a.b`, `c.jpg` the image of `c`.

    With suitable `ends`, `7_a.jpg` and `7_b.jpg` are two images of the key `7`.
    """
    stem, _, kind = name.rpartition(".")
    folder, slash, base = stem.rpartition("/")
    for role, end in ends.items():
        if base.endswith(end):
            return folder + slash + base.removesuffix(end), role, kind.lower()
    key, dot, column = base.rpartition(".")
    # In `photo.v2.jpg` the dot belongs to the key, unless `v2` names one of several images.
    if dot and kind.lower() in IMAGES and (column.isdigit() or column.lower() in ROLES):
        return folder + slash + key, column.lower(), kind.lower()
    return folder + slash + base, "image", kind.lower()


ROLES = ("before", "after", "input", "output", "source", "target", "image", "original", "edited", "a", "b")


def _put_text(cells: Cells, data: bytes, kind: str, where: str) -> None:
    try:
        text = data.decode("utf-8-sig")
        value = text if kind == "txt" else DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        cells[FAULT] = f"{where}: {error}"
        return
    if kind == "txt":
        cells.setdefault("txt", value)
    elif isinstance(value, dict):
        for name, cell in value.items():
            cells.setdefault(name, json.dumps(cell) if isinstance(cell, dict) else cell)
    else:
        cells[FAULT] = f"{where}: expected an object, not {type(value).__name__}"


def _column(name: str) -> str:
    """The column of a suffix: `0` for `0.jpg`, since images of one role may have several formats."""
    stem, dot, kind = name.rpartition(".")
    if dot and kind.lower() in IMAGES:
        return stem
    return "image" if name.lower() in IMAGES else name


READER = Reader(
    name="webdataset",
    summary="tars of single images or pairs by another tool, such as img2dataset",
    source="",
    licence="",
    layout="--annotations DIR/*.tar with <key>.jpg, <key>.txt or <key>.json; pairs as <key>.before.jpg and <key>.after.jpg, "
    "by --columns before=0.jpg,after=1.jpg (two suffixes), before=_a,after=_b (two keys) or "
    "before=x/*.tar,after=y/*.tar (two tars side by side); --columns caption=FIELD names a field of the JSON",
    rows=rows,
)

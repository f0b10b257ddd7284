"""The meaning of a table's columns, and the conversion of its rows to `Row`s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.readers import Row, split_name
from data_prep.readers.cells import image, kept, texts, turns, word
from onediff.errors import UserError

# Columns with a meaning, and other common names for them.
COLUMNS = {
    "before": ("before", "image_before", "img0", "source", "source_img", "original_image", "before_file_name"),
    "after": ("after", "image_after", "img1", "target", "target_img", "edited_image", "after_file_name"),
    "image": ("image", "picture", "file", "file_name"),
    "images": ("images",),
    "captions": ("captions", "caption", "sentences", "text", "description", "txt"),
    "conversations": ("conversations", "conversation", "messages"),
    "split": ("split",),
    "id": ("id", "uid", "key"),
    "instruction": ("instruction",),
    "change_type": ("change_type",),
}
ROLES = {1: ("image",), 2: ("before", "after")}
"""The roles of the images in a list, by its length."""
TOLD = {"edit", "caption_before", "caption_after"}
"""Columns from which `onediff data caption` makes captions; a table that has one may lack captions."""


@dataclass(frozen=True)
class Columns:
    """`of` maps a meaning to its column; `captions` are all columns of captions."""

    of: Mapping[str, str]
    captions: Sequence[str]
    used: frozenset[str]

    @classmethod
    def found(cls, header: Sequence[str], named: Mapping[str, str], table: object) -> Columns:
        """The columns; the user's names come first. Raises UserError if the table has no images or no captions."""
        of = meanings(header, named, table)
        captions = captions_in(header, of)
        if not captions and "conversations" not in of and not TOLD.intersection(header):
            raise UserError(f"{table}: no column 'caption'; it has {', '.join(header)} (--columns caption=NAME)")
        return cls(of, captions, frozenset((*of.values(), *captions)))

    def row(self, where: str, fields: Mapping[str, Any], split: str = "") -> Row:
        """One row, with the images and captions that it has; `split` is for rows that name none."""
        of, images = self.of, dict[str, str | bytes]()
        if "before" in of or "image" in of:
            images = {role: image(fields.get(of[role])) for role in ("before", "after", "image") if role in of}
        elif listed := fields.get(of.get("images", "")):
            listed = listed if isinstance(listed, list) else [listed]
            if len(listed) not in ROLES:
                return Row(
                    where, where, split or "train", {}, fault=f"{len(listed)} images, but a row may have one or two"
                )
            images = dict(zip(ROLES[len(listed)], map(image, listed), strict=True))
        told = {
            name: word(fields.get(of[name])) for name in ("split", "id", "instruction", "change_type") if name in of
        }
        others = ((name, kept(value)) for name, value in fields.items() if name not in self.used)
        meta = {name: value for name, value in others if value is not None}
        if change := told.get("change_type"):
            meta["change_type"] = change
        said = turns(fields.get(of["conversations"]), where) if "conversations" in of else ()
        captions = () if said else tuple(text for name in self.captions for text in texts(fields.get(name), where))
        return Row(
            where,
            told.get("id", ""),
            split_name(told.get("split") or split),
            images,
            captions,
            said,
            told.get("instruction") or None,
            meta,
        )


def meanings(header: Sequence[str], named: Mapping[str, str], table: object) -> dict[str, str]:
    """`meaning → column`; the user's names come first. Raises UserError if the table has no images."""
    folded = {name.strip().lower(): name for name in header if name}
    taken = [name for name in named.values() if name]
    if len(set(taken)) < len(taken):
        raise UserError(
            f"--columns: {max(taken, key=taken.count)} is named for two meanings; a column can have only one"
        )
    columns = {}
    for meaning, guesses in COLUMNS.items():
        given = named.get(meaning, named.get("caption") if meaning == "captions" else None)
        if given == "":
            continue  # the user declared that there is none
        if given and given not in header:
            raise UserError(f"{table}: no column {given!r}; it has {', '.join(header)}")
        found = given or next((folded[guess] for guess in guesses if folded.get(guess, "") not in ("", *taken)), None)
        if found:
            columns[meaning] = found
        if found and not given and meaning != "captions":
            same = [name for name in header if name and name.strip().lower() == found.strip().lower()]
            if len(same) > 1:
                raise UserError(
                    f"{table}: columns {' and '.join(map(repr, same))}: rename one, or choose one "
                    f"(--columns {meaning}={found})"
                )
    if "before" in columns and "after" in columns:
        columns.pop("image", None)
        columns.pop("images", None)
    elif "image" not in columns and "images" not in columns and "conversations" not in columns:
        lacking = "after" if "before" in columns else "before"
        raise UserError(
            f"{table}: no column {lacking!r}; it has {', '.join(map(str, header))} (--columns {lacking}=NAME)"
        )
    else:
        columns.pop("before", None)
        columns.pop("after", None)
    return columns


def captions_in(header: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """All caption columns: the named one, and `caption_1`, `caption2`, …."""
    first = [columns["captions"]] if "captions" in columns else []
    numbered = [name for name in header if name and name.lower().rstrip("0123456789").rstrip("_") == "caption"]
    return list(dict.fromkeys(first + numbered))

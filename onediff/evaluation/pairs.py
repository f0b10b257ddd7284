"""Pairs of images from two files, two folders, a table, or the frames of a video."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from onediff.errors import UserError
from onediff.evaluation.files import read_text

TABLES = (".csv", ".tsv")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class Pair(NamedTuple):
    """Two images, as files or (from a video) in memory, and reference captions if there are any."""

    id: str
    """One line of text."""
    before: Path | Image.Image
    after: Path | Image.Image
    references: tuple[str, ...] = ()


def pairs_of(
    paths: list[Path], every: float = 1.0, against: Literal["first", "previous"] = "previous"
) -> Iterator[Pair]:
    """The pairs that one or two paths name; a video gives a frame every `every` seconds. Raises UserError."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such image, folder, table or video")
    if len(paths) == 1:
        suffix = paths[0].suffix.lower()
        if suffix in TABLES:
            return from_table(paths[0])
        if suffix in VIDEOS:
            return from_video(paths[0], every, against)
        raise UserError(
            f"{paths[0]}: a single path must be a table ({', '.join(TABLES)}) or a video; otherwise give BEFORE AFTER"
        )
    if len(paths) != 2:
        raise UserError(f"{len(paths)} paths: give two images, two folders, a table or a video")
    before, after = paths
    if before.is_dir() != after.is_dir():
        raise UserError(f"{before} and {after}: one is a folder and the other is not")
    return from_folders(before, after) if before.is_dir() else iter([Pair(one_line(before.stem), before, after)])


def from_folders(before: Path, after: Path) -> Iterator[Pair]:
    """Images with the same name, whatever their suffix, sorted by name; others are left out.

    Raises UserError if a name is not unique in a folder, or if no name is in both.
    """
    first, second = _images(before), _images(after)
    names = sorted(first.keys() & second.keys())
    if not names:
        raise UserError(f"{before} and {after}: no image of the same name is in both")
    return (Pair(one_line(name), first[name], second[name]) for name in names)


def one_line(name: str) -> str:
    """A file's name as one line of text: a name may contain line breaks, and bytes that are not UTF-8."""
    return " ".join(name.encode(errors="replace").decode().split())


def unmatched(paths: list[Path]) -> dict[Path, list[str]]:
    """For two folders, the images of each whose name is not in the other; nothing for other paths."""
    if len(paths) != 2 or not all(path.is_dir() for path in paths):
        return {}
    found = [_images(path) for path in paths]
    alone = [sorted(one.keys() - other.keys()) for one, other in (found, found[::-1])]
    return {
        path: [images[name].name for name in names]
        for path, images, names in zip(paths, found, alone, strict=True)
        if names
    }


def counted(pairs: Iterator[Pair]) -> tuple[Iterator[Pair], int | None]:
    """The pairs and their number; None for the frames of a video, which are read only when they are used."""
    first = next(pairs, None)
    if first is None or isinstance(first.before, Image.Image):
        return chain([first] if first else [], pairs), None
    whole = [first, *pairs]
    return iter(whole), len(whole)


def _images(folder: Path) -> dict[str, Path]:
    Image.init()
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in Image.EXTENSION and path.is_file():
            if path.stem in found:
                raise UserError(f"{folder}: both {found[path.stem].name} and {path.name}; a name must be unique")
            found[path.stem] = path
    return found


def from_table(table: Path) -> Iterator[Pair]:
    """Rows with the columns `before`, `after` and optionally `id` and `caption`; a pair may have several rows.

    Paths are relative to the table. Raises UserError.
    """
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""), delimiter=delimiter, strict=True)
    found: dict[str, Pair] = {}
    try:
        for name in ("before", "after"):
            if name not in (reader.fieldnames or ()):
                raise UserError(f"{table}: no column {name!r} in the header")
        for row in reader:
            where = f"{table}: line {reader.line_num}"
            if None in row or not row["before"] or not row["after"]:
                raise UserError(f"{where}: needs a before and an after, and as many fields as the header")
            pair = row.get("id") or f"{row['before']} {row['after']}"
            made = Pair(one_line(pair), table.parent / row["before"], table.parent / row["after"])
            known = found.setdefault(pair, made)
            if known[:3] != made[:3]:
                raise UserError(f"{where}: id {pair!r} names other images in an earlier row")
            if row.get("caption"):
                found[pair] = known._replace(references=(*known.references, row["caption"]))
    except csv.Error as error:
        raise UserError(f"{table}: line {reader.line_num}: {error}") from None
    if not found:
        raise UserError(f"{table}: no pairs in it")
    return iter(found.values())


def from_video(video: Path, every: float, against: Literal["first", "previous"]) -> Iterator[Pair]:
    """A frame every `every` seconds, paired with the first or the previous frame; the id is the second frame's time.

    Holds two frames at a time. Raises UserError if OpenCV is missing or cannot read the file.
    """
    try:
        import cv2
    except ImportError:
        raise UserError("captions of a video need OpenCV: pip install opencv-python-headless") from None
    if every <= 0:
        raise UserError(f"--every {every:g}: must be more than 0 seconds")
    film = cv2.VideoCapture(str(video))
    rate = film.get(cv2.CAP_PROP_FPS)
    if not film.isOpened() or rate <= 0:
        raise UserError(f"{video}: not a video that OpenCV can read")

    def taken() -> Iterator[tuple[float, Image.Image]]:
        number, due = 0, 0.0
        while film.grab():
            if number / rate >= due - 1e-9:
                due += every
                whole, frame = film.retrieve()
                if whole:
                    yield number / rate, Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            number += 1

    def paired() -> Iterator[Pair]:
        kept: Image.Image | None = None
        count = 0
        for seconds, frame in taken():
            if kept is not None:
                count += 1
                yield Pair(f"{seconds:.2f}s", kept, frame)
            if kept is None or against == "previous":
                kept = frame
        film.release()
        if not count:
            raise UserError(f"{video}: fewer than two frames, {every:g} seconds apart; lower --every")

    return paired()

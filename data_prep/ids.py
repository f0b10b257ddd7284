"""Ids of rows: one id for one pair of images, since scores are made pair by pair."""

from __future__ import annotations

from collections.abc import Iterator
from os.path import basename, splitext
from urllib.parse import urlsplit

from data_prep.readers import Row
from onediff.errors import UserError


class Ids:
    """Which images each id of a data set stands for."""

    def __init__(self) -> None:
        self._images_of: dict[str, bytes] = {}

    def given(self, row: Row, images: bytes) -> str:
        """The row's id, made of the paths where it has none: `a/1.jpg` and `a/2.jpg` are `a-1-2`.

        `images` is a fingerprint of them. Raises UserError where the row's own id stands for other images already.
        """
        if not row.id:
            return next(id for id in _candidates(row) if id and self._is_free(row, id, images))
        if all(row.images.values()) and not row.conversations and not self._is_free(row, row.id, images):
            raise UserError(
                f"{row.where}: an earlier row of split {row.split} has the id {row.id!r} and other images; give each pair "
                "an id of its own, or let their paths be the ids (--columns id=)"
            )
        return row.id

    def _is_free(self, row: Row, id: str, images: bytes) -> bool:
        return self._images_of.setdefault(f"{row.split}/{id}", images) == images


def _candidates(row: Row) -> Iterator[str]:
    """Names for a row, the shortest first; the last is its own."""
    values = [value for value in row.images.values() if isinstance(value, str) and value]
    paths = [urlsplit(value).path.lstrip("/") if "://" in value else value for value in values]
    stems = [splitext(path)[0] for path in paths]
    folders = [stem.rpartition("/")[0] for stem in stems]
    is_one_folder = bool(folders) and folders.count(folders[0]) == len(folders)
    yield "-".join(filter(None, [folders[0], *map(basename, stems)] if is_one_folder else stems))
    yield "-".join(paths)
    yield row.where

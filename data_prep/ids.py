"""Ids of rows: one id per pair of images, since scores are computed per pair."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from itertools import count
from os.path import basename, splitext
from typing import TypeVar
from urllib.parse import urlsplit

from data_prep.readers import Row
from onediff.errors import UserError

Place = TypeVar("Place")


class Ids:
    """The images that each id of a split stands for; `images` is a number that identifies a row's images."""

    def __init__(self) -> None:
        self._images_of: dict[tuple[str, str], int] = {}

    def is_free(self, split: str, id: str, images: int) -> bool:
        """Whether the id is free for these images; if so, assigns it to them."""
        return self._images_of.setdefault((split, id), images) == images

    def given(self, row: Row, images: int) -> str:
        """An id from the row's paths, as short as possible: `a/1.jpg` and `a/2.jpg` give `a-1-2`."""
        return next(id for id in _candidates(row) if id and self.is_free(row.split, id, images))


def taken(row: Row) -> UserError:
    """The error for an id that two pairs have."""
    return UserError(
        f"{row.where}: an earlier row of split {row.split} has the id {row.id!r} and other images; give each pair "
        "its own id, or take the ids from the paths (--columns id=)"
    )


def first_id(row: Row) -> str:
    """The default id of a row without one, unless other images already have it."""
    return next(filter(None, _candidates(row)))


def unique_ids(samples: Iterable[tuple[Place, str, Hashable]]) -> dict[Place, str]:
    """New ids, by place, for the samples `(place, id, images)` of a split whose id belongs to earlier samples with other
    images: `7` becomes `7-2`. Data sets number their pairs independently, and captions are scored together by id."""
    samples = list(samples)
    images_of: dict[str, Hashable] = {}
    clashing = [one for one in samples if images_of.setdefault(one[1], one[2]) != one[2]]
    renamed: dict[Place, str] = {}
    numbers: dict[str, Iterator[int]] = {}
    given: dict[tuple[str, Hashable], str] = {}
    for place, id, images in clashing:
        if (id, images) not in given:
            candidates = (f"{id}-{number}" for number in numbers.setdefault(id, count(2)))
            given[id, images] = next(new for new in candidates if images_of.setdefault(new, images) == images)
        renamed[place] = given[id, images]
    return renamed


def _candidates(row: Row) -> Iterator[str]:
    """Possible ids of a row, the shortest first; the last one is unique."""
    values = [value for value in row.images.values() if isinstance(value, str) and value]
    paths = [urlsplit(value).path.lstrip("/") if "://" in value else value for value in values]
    stems = [splitext(path)[0] for path in paths]
    folders = [stem.rpartition("/")[0] for stem in stems]
    is_one_folder = bool(folders) and folders.count(folders[0]) == len(folders)
    yield "-".join(filter(None, [folders[0], *map(basename, stems)] if is_one_folder else stems))
    yield "-".join(paths)
    yield row.where

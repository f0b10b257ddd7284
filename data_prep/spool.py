"""Rows on disk between reading and writing: a million of them need little memory, and all processes share them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers import Row

ENCODE = json.JSONEncoder(ensure_ascii=False).encode


class SpoolWriter:
    """Appends rows to `<folder>/rows.jsonl`, and images that came inside the annotations to `<folder>/images`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = (folder / "rows.jsonl").open("wb")
        self._images = (folder / "images").open("wb")
        self._at = 0

    def text_of(self, row: Row) -> bytes:
        """The row as one line; what it holds of images goes into the file of images."""
        images = {role: value if isinstance(value, str) else self._stored(value) for role, value in row.images.items()}
        return ENCODE({**vars(row), "images": images}).encode("utf-8", "replace")

    def add(self, text: bytes) -> tuple[int, int]:
        """Where the text of a row then begins and ends."""
        self._rows.write(text)
        begin, self._at = self._at, self._at + len(text)
        return begin, self._at

    def _stored(self, image: bytes) -> list[int]:
        at = self._images.tell()
        self._images.write(image)
        return [at, len(image)]

    def close(self) -> None:
        self._rows.close()
        self._images.close()

    def spool(self, split: str, places: Sequence[tuple[int, int]]) -> Spool:
        """The rows at `places` as those of one split."""
        spool = Spool(self.folder, split, len(places))
        np.array(places, dtype="<i8").tofile(spool.places)
        return spool


@dataclass(frozen=True)
class Spool:
    """The rows of one split. Small to send to worker processes; `spool[i]` reads row `i`."""

    folder: Path
    split: str
    count: int
    _open: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Spool, (self.folder, self.split, self.count)

    @property
    def places(self) -> Path:
        """The file of where the rows begin and end, `[count, 2]` little-endian int64."""
        return self.folder / f"{self.split}.places"

    def __getitem__(self, i: int) -> Row:
        if not self._open:
            for name in ("rows.jsonl", "images"):
                self._open[name] = os.open(self.folder / name, os.O_RDONLY)
            self._open["places"] = np.memmap(self.places, dtype="<i8", mode="r", shape=(self.count, 2))
        begin, end = map(int, self._open["places"][i])
        fields = json.loads(os.pread(self._open["rows.jsonl"], end - begin, begin))
        images = {
            role: value if isinstance(value, str) else os.pread(self._open["images"], value[1], value[0])
            for role, value in fields.pop("images").items()
        }
        captions, turns = tuple(fields.pop("captions")), tuple(fields.pop("conversations"))
        return replace(Row(images=images, captions=captions, conversations=turns, **fields), split=self.split)

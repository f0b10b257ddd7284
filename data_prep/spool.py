"""Rows on disk between reading and writing, so that a million of them need little memory and all processes share them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers import Row


class SpoolWriter:
    """Appends rows to `<folder>/rows.jsonl`, and images that came inside the annotations to `<folder>/images`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = (folder / "rows.jsonl").open("wb")
        self._images = (folder / "images").open("wb")
        self._at = 0

    def add(self, row: Row) -> tuple[int, int]:
        """Where the row's text begins and ends."""
        images = {role: self._stored(value) for role, value in row.images.items()}
        text = json.dumps({**vars(row), "images": images}, ensure_ascii=False).encode("utf-8", "replace")
        self._rows.write(text)
        begin, self._at = self._at, self._at + len(text)
        return begin, self._at

    def _stored(self, value: str | bytes) -> str | list[int]:
        if isinstance(value, str):
            return value
        at = self._images.tell()
        self._images.write(value)
        return [at, len(value)]

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

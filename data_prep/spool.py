"""Rows on disk between reading and writing, so that a million of them need no memory and workers can share them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.readers import Row


class SpoolWriter:
    """Appends rows to `<path>`, and images that came inside the annotations to `<path>.images`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._rows = path.open("wb")
        self._images = path.with_name(path.name + ".images").open("wb")
        self._offsets: list[int] = []

    def add(self, row: Row) -> None:
        images = {role: self._stored(value) for role, value in row.images.items()}
        text = json.dumps({**vars(row), "images": images}, ensure_ascii=False).encode("utf-8", "replace")
        self._offsets.append(self._rows.tell())
        self._rows.write(text + b"\n")
        self.count += 1

    def _stored(self, value: str | bytes) -> str | list[int]:
        if isinstance(value, str):
            return value
        at = self._images.tell()
        self._images.write(value)
        return [at, len(value)]

    def close(self) -> Spool:
        self._rows.close()
        self._images.close()
        np.array(self._offsets, dtype="<i8").tofile(self.path.with_name(self.path.name + ".offsets"))
        return Spool(self.path, self.count)


@contextmanager
def spooled(path: Path) -> Iterator[SpoolWriter]:
    """A `SpoolWriter` whose files are removed in the end."""
    writer = SpoolWriter(path)
    try:
        yield writer
    finally:
        for name in ("", ".images", ".offsets"):
            path.with_name(path.name + name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Spool:
    """The rows of one split. Small to send to worker processes; `spool[i]` reads row `i`."""

    path: Path
    count: int
    _open: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Spool, (self.path, self.count)

    def __getitem__(self, i: int) -> Row:
        if not self._open:
            for name in ("", ".images"):
                self._open[name] = os.open(self.path.with_name(self.path.name + name), os.O_RDONLY)
            offsets: NDArray[np.int64] = np.fromfile(self.path.with_name(self.path.name + ".offsets"), dtype="<i8")
            self._open["ends"] = np.append(offsets, os.fstat(self._open[""]).st_size)
        start, end = (int(self._open["ends"][n]) for n in (i, i + 1))
        fields = json.loads(os.pread(self._open[""], end - start, start))
        images = {
            role: value if isinstance(value, str) else os.pread(self._open[".images"], value[1], value[0])
            for role, value in fields.pop("images").items()
        }
        captions, turns = tuple(fields.pop("captions")), tuple(fields.pop("conversations"))
        return Row(images=images, captions=captions, conversations=turns, **fields)

"""Plans a conversion: decides which rows become which samples of which split before opening any image.

All rows are read once, in this process, and then kept on disk (`data_prep.spool`). A row of CSV, JSONL or Parquet costs
about 2 µs and 300 bytes of memory, a row of another reader about 30 µs. Tasks that share the work share the plan: the
first makes it, and the others map it into memory and read their own rows.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.chunks import digest
from data_prep.image_source import SUFFIXES, ImageSource
from data_prep.leakage import NOTES
from data_prep.planning import Choices as Choices
from data_prep.planning import PlannedSplit, plan_rows
from data_prep.readers import Inputs, Reader, Row
from data_prep.share import Share
from data_prep.spool import Spool, Spooled
from data_prep.writer import locked
from onediff.atomic import write_whole

VERSION = 2
DEPTH = 4
"""Folders below each other in which annotations are looked for."""


@dataclass(frozen=True)
class SplitPlan:
    """The samples of one split. Cheap to send to worker processes; `plan[i]` reads sample `i`."""

    spool: Spool
    name: str
    count: int
    inputs: str
    """Digest of the rows and decisions behind its samples."""
    leakage: dict[str, dict[str, int]]
    """Number of samples that share all their images, or one, with another split, by its name."""
    ids: dict[int, str] = field(repr=False)
    """The ids of samples whose default ids are already taken."""

    @classmethod
    def saved(cls, spool: Spool, name: str, planned: PlannedSplit) -> SplitPlan:
        """Writes the arrays of a split next to the rows."""
        hashed = hashlib.sha256()
        for key in ("rows", "merged", "marks"):
            array = getattr(planned, key)
            np.save(spool.folder / f"{name}.{key}.npy", array)
            if key != "rows":  # row numbers depend on the rows of other splits
                hashed.update(array.tobytes())
        inputs = digest([planned.inputs, hashed.hexdigest(), sorted(planned.ids.items()), planned.leakage])
        return cls(spool, name, len(planned.rows), inputs, planned.leakage, planned.ids)

    def digest(self, *options: str) -> str:
        """Identifies the samples as made with these options."""
        return digest([self.inputs, *options])

    def __getitem__(self, i: int) -> tuple[Row, list[str]]:
        """The row of sample `i`, with the captions of rows that repeat it, and its notes."""
        row = self.spool[int(self._arrays["rows"][i])]
        begin, end = np.searchsorted(self._arrays["merged"][:, 0], (i, i + 1))
        again = [self.spool[int(number)].captions for number in self._arrays["merged"][begin:end, 1]]
        notes = ["merged_row"] * len(again) + list(filter(None, [NOTES[self._arrays["marks"][i]]]))
        changed: dict[str, Any] = {"split": self.name}
        if again:
            changed["captions"] = (*row.captions, *(caption for captions in again for caption in captions))
        if i in self.ids:
            changed["id"] = self.ids[i]
        return dataclasses.replace(row, **changed), notes

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        paths = {key: self.spool.folder / f"{self.name}.{key}.npy" for key in ("rows", "merged", "marks")}
        return {key: np.load(path, mmap_mode="r" if key == "rows" else None) for key, path in paths.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_arrays"}

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return {key: value for key, value in vars(self).items() if key not in ("spool", "_arrays")}

    @classmethod
    def of(cls, spool: Spool, fields: dict[str, Any]) -> SplitPlan:
        """The plan from the result of `fields`."""
        return cls(spool, **{**fields, "ids": {int(i): id for i, id in fields["ids"].items()}})


@dataclass(frozen=True)
class ConversionPlan:
    """The splits by name, `train` first. The tasks of a share use a `shared` plan."""

    splits: dict[str, SplitPlan]
    shared: bool = False


@contextmanager
def planned(
    reader: Reader, inputs: Inputs, image_source: ImageSource, choices: Choices, out: Path, share: Share | None
) -> Iterator[ConversionPlan]:
    """The plan, with its files in `out/.tmp-rows` while it is in use.

    The first task of a `share` leaves it for the others; a call without a share uses it, then removes it. Raises UserError
    if rows cannot be read, or if a process that is not such a task is working in `out`.
    """
    folder = out / ".tmp-rows"
    key = digest([VERSION, reader.name, _state(inputs, out.resolve()), dataclasses.asdict(choices), str(out.resolve())])
    done = folder / f"plan-{key[:16]}.json"
    waiting = f"{reader.name}: another task is reading the rows; waiting for its plan" if share else ""
    with locked(folder, lambda: share is not None and done.exists(), waiting) as lock:
        try:
            if done.exists():
                plan = _loaded(done)
            else:
                parts, planned = plan_rows(reader, inputs, image_source, choices, folder)
                spool = Spool(folder, parts)
                plan = ConversionPlan({name: SplitPlan.saved(spool, name, split) for name, split in planned.items()})
            if share:
                if not plan.shared:
                    _save(plan, done)
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield plan
        finally:
            if share is None or not done.exists():
                shutil.rmtree(folder, ignore_errors=True)


def _save(plan: ConversionPlan, path: Path) -> None:
    spool = next(iter(plan.splits.values())).spool
    fields = {"parts": [part.fields() for part in spool.parts], "splits": [s.fields() for s in plan.splits.values()]}
    write_whole(path, json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace"))


def _loaded(path: Path) -> ConversionPlan:
    fields = json.loads(path.read_text(encoding="utf-8"))
    spool = Spool(path.parent, tuple(Spooled.of(part) for part in fields["parts"]))
    return ConversionPlan({split["name"]: SplitPlan.of(spool, split) for split in fields["splits"]}, shared=True)


def _state(inputs: Inputs, out: Path) -> list[object]:
    """Identifies these inputs by the sizes and modification times of the annotation files."""
    base = inputs.annotations or inputs.images
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in _tables(base, out)] if base else []
    return [states, str(inputs.images), inputs.columns, inputs.hosts]


def _tables(base: Path, out: Path) -> list[Path]:
    """What a reader may read as annotations: a file, those that match a pattern, or all below a folder that are no images.

    Leaves out hidden folders, and `out`, where the tasks write.
    """
    if not base.is_dir():
        return [base] if base.exists() else sorted(base.parent.glob(base.name))
    found = []
    for folder, below, names in os.walk(base, followlinks=True):
        here = Path(folder)
        is_deep = len(here.relative_to(base).parts) >= DEPTH  # links may lead back up
        below[:] = [name for name in below if not (is_deep or name.startswith(".") or (here / name).resolve() == out)]
        found += [here / name for name in names if not name.lower().endswith(SUFFIXES)]
    return sorted(file for file in found if file.is_file())

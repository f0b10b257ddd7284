"""Decides, before any image is opened, which rows become which samples of which split.

All rows are read once, in this process, and lie on disk afterwards (`data_prep.spool`). Costs about 50 µs a row and 500
bytes of memory; no image is looked at. Tasks that share the work share the plan: the first one makes it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.chunks import digest
from data_prep.groups import held_out, image_groups
from data_prep.ids import Ids
from data_prep.image_source import ImageSource
from data_prep.readers import Inputs, Reader, Row
from data_prep.share import Share
from data_prep.splits import check_split
from data_prep.spool import Spool, SpoolWriter
from data_prep.writer import locked
from onediff.errors import UserError
from onediff.progress import progress

VERSION = 1
REST = ("captions", "conversations", "instruction", "meta", "fault")
"""Fields of a row that the plan leaves as they are."""


@dataclass(frozen=True)
class Choices:
    """What the user decides about splits: see `convert`."""

    splits: Sequence[str] = ()
    hold_out: float = 0.0
    hold_out_by: str | None = None
    allow_leakage: bool = False


@dataclass
class SplitPlan:
    """The rows of one split. `captions` of repeated rows and `notes` are kept by the number of the sample."""

    spool: Spool
    inputs: str
    """Digest of the rows."""
    captions: dict[int, list[str]]
    notes: dict[int, list[str]]
    leakage: dict[str, dict[str, int]]
    """By the name of another split: how many samples have all images in common with it, or one."""

    def digest(self, *options: str) -> str:
        """What tells its samples, made with these options, from others."""
        return digest([self.inputs, *options, sorted(self.notes.items()), self.leakage])

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "spool": self.spool.count}

    @classmethod
    def of(cls, folder: Path, name: str, fields: dict[str, Any]) -> SplitPlan:
        """What `fields` wrote."""
        for key in ("captions", "notes"):
            fields[key] = {int(i): value for i, value in fields[key].items()}
        return cls(**{**fields, "spool": Spool(folder, name, fields["spool"])})


@dataclass(frozen=True)
class ConversionPlan:
    """The splits by name, `train` first. Tasks that share the work have made a `shared` one."""

    splits: dict[str, SplitPlan]
    shared: bool = False


@contextmanager
def planned(
    reader: Reader, inputs: Inputs, image_source: ImageSource, choices: Choices, out: Path, share: Share | None
) -> Iterator[ConversionPlan]:
    """The plan, with its files in `out/.tmp-rows` for as long as it is used.

    The first task of a `share` leaves it to the others; a call without one uses theirs and removes it in the end.
    Raises UserError for rows that cannot be read, and where another process that is no such task works in `out`.
    """
    folder = out / ".tmp-rows"
    key = digest([VERSION, reader.name, _state(inputs), dataclasses.asdict(choices), str(out.resolve())])
    done = folder / f"plan-{key[:16]}.json"
    waiting = f"{reader.name}: another task reads the rows; waiting for its plan" if share else ""
    with locked(folder, lambda: share is not None and done.exists(), waiting) as lock:
        try:
            if done.exists():
                found = json.loads(done.read_text(encoding="utf-8"))
                splits = {name: SplitPlan.of(folder, name, fields) for name, fields in found.items()}
                plan = ConversionPlan(splits, shared=True)
            else:
                plan = ConversionPlan(_Rows(reader, inputs, image_source, choices, folder).splits_planned())
            if share:
                if not plan.shared:
                    _save(plan, done)
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield plan
        finally:
            if share is None or not done.exists():
                shutil.rmtree(folder, ignore_errors=True)


def _save(plan: ConversionPlan, path: Path) -> None:
    aside = path.with_name(".tmp-plan.json")
    text = json.dumps({name: split.fields() for name, split in plan.splits.items()}, ensure_ascii=False)
    aside.write_text(text, encoding="utf-8", errors="replace")
    aside.replace(path)


def _state(inputs: Inputs) -> list[object]:
    """What tells these inputs from others, at the price of one look at the annotations."""
    base = inputs.annotations or inputs.images
    files = [base, *sorted(base.iterdir())] if base is not None and base.is_dir() and inputs.annotations else [base]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file and file.exists()]
    return [states, str(inputs.images), inputs.columns, inputs.hosts]


@dataclass
class _Split:
    """What is remembered of the rows of one split while they are read."""

    places: list[tuple[int, int]] = field(default_factory=list)
    images: list[tuple[bytes, ...]] = field(default_factory=list)
    """Fingerprints of each row's images; none of a row that lacks one."""
    groups: list[str] = field(default_factory=list)
    """Each row's value of the column that `hold_out_by` names."""
    digests: list[bytes] = field(default_factory=list)
    captions: dict[int, list[str]] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)
    leakage: dict[str, dict[str, int]] = field(
        default_factory=lambda: defaultdict(lambda: {"same_images": 0, "one_image": 0})
    )

    def part(self, chosen: Sequence[int]) -> _Split:
        """Some of its rows, by their numbers."""
        number = {old: new for new, old in enumerate(chosen)}
        return _Split(
            [self.places[i] for i in chosen],
            [self.images[i] for i in chosen],
            [self.groups[i] for i in chosen if self.groups],
            [self.digests[i] for i in chosen],
            {number[i]: kept for i, kept in self.captions.items() if i in number},
            {number[i]: kept for i, kept in self.notes.items() if i in number},
        )


class _Rows:
    """The rows of a data set on their way into a plan."""

    def __init__(
        self, reader: Reader, inputs: Inputs, image_source: ImageSource, choices: Choices, folder: Path
    ) -> None:
        self.reader, self.inputs, self.image_source, self.choices = reader, inputs, image_source, choices
        if inputs.images:
            image_source.open()  # an archive that is refused is refused now
        for path in folder.iterdir():
            if path.name != "lock":
                path.unlink()
        self.spool = SpoolWriter(folder)
        self.splits: dict[str, _Split] = {}
        self.sample_of: dict[bytes, int] = {}
        self.ids = Ids()

    def splits_planned(self) -> dict[str, SplitPlan]:
        """Reads everything. Raises UserError."""
        try:
            with progress(None, f"{self.reader.name}: reading rows", "rows") as bar:
                for row in self.reader.rows(self.inputs):
                    self.add(row)
                    bar.update()
        finally:
            self.spool.close()
        if not self.splits:
            raise UserError(f"{self.inputs.annotations or self.inputs.images}: there are no rows")
        if self.choices.hold_out:
            self.hold_out()
        names = sorted(self.splits, key=lambda name: (name != "train", name))
        self.compare(names)
        plan = {}
        for name in names:
            split = self.splits[name]
            inputs = hashlib.sha256(b"".join(split.digests)).hexdigest()
            spool = self.spool.spool(name, split.places)
            plan[name] = SplitPlan(spool, inputs, split.captions, split.notes, dict(split.leakage))
        return plan

    def add(self, row: Row) -> None:
        """Puts one row into its split, or its captions beside those of an earlier row of the same images."""
        place, where = self.image_source.place, row.where
        images = {
            role: place(value, where) if isinstance(value, str) and value else value
            for role, value in row.images.items()
        }
        name = row.split or "train"
        if name not in self.splits:
            check_split(name, where, self.choices.splits)
            self.splits[name] = _Split()
        split = self.splits[name]
        prints = tuple(fingerprint(images[role]) for role in sorted(images))
        mark = b"".join(prints)
        row = Row(where, row.id, name, images, *(getattr(row, field) for field in REST))
        if (id := self.ids.given(row, mark)) != row.id:
            row = dataclasses.replace(row, id=id)
        text = self.spool.text_of(row)
        made_of = fingerprint(text + mark)
        same = fingerprint(f"{name}/{row.id}/".encode("utf-8", "surrogateescape") + mark)
        sample = self.sample_of.setdefault(same, len(split.places))
        if sample < len(split.places) and row.captions:
            split.captions.setdefault(sample, []).extend(row.captions)
            split.notes.setdefault(sample, []).append("merged_row")
            split.digests[sample] = fingerprint(split.digests[sample] + made_of)
            return
        self.sample_of[same] = len(split.places)
        split.places.append(self.spool.add(text))
        split.digests.append(made_of)
        split.images.append(prints if images and all(images.values()) else ())
        if self.choices.hold_out_by:
            split.groups.append(str(row.meta.get(self.choices.hold_out_by, "")))

    def hold_out(self) -> None:
        """Moves a part of `train` to `test`, and never one of two pairs that belong together."""
        train = self.splits.get("train", _Split())
        column = self.choices.hold_out_by
        if column and not any(train.groups):
            raise UserError(f"--hold-out-by {column}: no row of the split train has such a column")
        moved = held_out(train.groups or image_groups(train.images), self.choices.hold_out)
        if train.places and not moved:
            raise UserError(
                f"--hold-out {self.choices.hold_out:g}: all pairs are connected by the images they share; say with "
                "--hold-out-by COLUMN what belongs together, or give the table a column split"
            )
        held = train.part([i for i in range(len(train.places)) if i in moved])
        self.splits["train"] = train.part([i for i in range(len(train.places)) if i not in moved])
        test = self.splits.setdefault("test", _Split())
        first = len(test.places)
        for name in ("places", "images", "groups", "digests"):
            getattr(test, name).extend(getattr(held, name))
        test.captions |= {first + i: kept for i, kept in held.captions.items()}
        test.notes |= {first + i: kept for i, kept in held.notes.items()}

    def compare(self, names: Sequence[str]) -> None:
        """Notes samples whose images are in an earlier split of `names` too; a pair turned around is the same pair.

        Raises UserError where that is `train`, unless the reader's authors publish it so, or the user allows it.
        """
        if len(names) < 2:
            return
        split_of: dict[bytes, str] = {}
        in_train: set[bytes] = set()
        for name in names:
            split = self.splits[name]
            for i, images in enumerate(split.images):
                if not images:
                    continue
                other = split_of.setdefault(b"".join(sorted(images)), name)
                if other != name:
                    if other == "train" and not (self.choices.allow_leakage or self.reader.published):
                        raise self.leak(name, i)
                    self.note(name, i, other, "in_two_splits", "same_images")
                elif len(images) > 1 and name != "train" and not in_train.isdisjoint(images):
                    self.note(name, i, "train", "image_in_two_splits", "one_image")
            if name == "train":
                in_train.update(image for images in split.images for image in images)

    def note(self, name: str, i: int, other: str, word: str, kind: str) -> None:
        self.splits[name].notes.setdefault(i, []).append(word)
        self.splits[name].leakage[other][kind] += 1
        self.splits[other].leakage[name][kind] += 1

    def leak(self, name: str, i: int) -> UserError:
        row = self.spool.spool(name, self.splits[name].places)[i]
        shown = [value if isinstance(value, str) else f"{len(value)} bytes" for value in row.images.values()]
        return UserError(
            f"{row.where}: the same image{'s' * (len(shown) > 1)} ({', '.join(shown)}) are in the splits train and "
            f"{name}; fix the rows or add --allow-leakage"
        )


def fingerprint(value: str | bytes) -> bytes:
    """Sixteen bytes that stand for `value` in memory."""
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=16).digest()

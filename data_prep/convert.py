"""From a reader's rows to shards: repeated rows merged, splits kept apart, images made plain, captions cleaned."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.ids import Ids
from data_prep.image_source import ImageSource
from data_prep.images import Encoding, is_grey, is_misnamed, prepare
from data_prep.readers import Inputs, Reader, Row
from data_prep.report import Report
from data_prep.share import Share
from data_prep.splits import check_split
from data_prep.spool import Spool, SpoolWriter, spooled
from data_prep.writer import locked, write_dataset
from onediff.data.sample import BadSample, Sample
from onediff.errors import UserError


@dataclass
class Split:
    """What is gathered about one split while rows are read."""

    spool: SpoolWriter
    extra: dict[int, list[str]] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)


@dataclass(frozen=True)
class MakeSample:
    """Sample `i` of a split. Picklable; opens the images where it runs."""

    spool: Spool
    image_source: ImageSource
    source: str
    encoding: Encoding
    extra: dict[int, list[str]]
    notes: dict[int, list[str]]

    def __call__(self, i: int) -> Sample:
        row = self.spool[i]
        try:
            return self.sample(row, (*row.captions, *self.extra.get(i, ())), list(self.notes.get(i, ())))
        except BadSample as bad:
            raise BadSample(bad.kind, f"{row.where}: {bad.reason}") from bad

    def sample(self, row: Row, captions: Sequence[str], notes: list[str]) -> Sample:
        """Raises `BadSample` with a reason that does not say where."""
        clean = [" ".join(caption.split()) for caption in captions]
        kept = tuple(caption for caption in clean if caption)
        notes += ["blank_caption"] * clean.count("")
        if row.instruction and " ".join(row.instruction.split()) in kept:
            notes.append("instruction_is_caption")  # the model would be asked with the answer
        if not kept and not row.conversations:
            raise BadSample("no_caption", "the caption is empty" if len(clean) == 1 else "there is no caption")
        images, sizes = {}, {}
        for role, value in row.images.items():
            images[role], sizes[role], remarks = self.image(role, value)
            notes += remarks
        if len(set(sizes.values())) > 1:
            notes.append("sizes_differ")
        if "before" in images and images["before"] == images.get("after"):
            notes.append("identical_pair")
        meta = {**row.meta, "size": {role: list(size) for role, size in sizes.items()}} if sizes else dict(row.meta)
        if notes:
            meta["notes"] = sorted(notes)
        task = "conversation" if row.conversations else "pair" if "before" in images else "single"
        return Sample(row.id, self.source, task, row.split, kept, row.conversations, row.instruction, meta, images)

    def image(self, role: str, value: str | bytes) -> tuple[bytes, tuple[int, int], list[str]]:
        """The image to store, its size and notes."""
        if not value:
            raise BadSample("missing_image", f"there is no {role} image")
        data, notes = (value, []) if isinstance(value, bytes) else self.image_source.read(value)
        try:
            stored, size, remarks = prepare(data, self.encoding)
        except BadSample as bad:
            raise BadSample(bad.kind, f"{value if isinstance(value, str) else role}: {bad.reason}") from bad
        if isinstance(value, str) and not notes and is_misnamed(value, data):
            notes = ["wrong_suffix"]
        return stored, size, notes + remarks + (["grey"] if is_grey(data) else [])


def convert(
    reader: Reader,
    inputs: Inputs,
    out: Path,
    *,
    splits: Sequence[str] = (),
    encoding: Encoding | None = None,
    hold_out: float = 0.0,
    allow_leakage: bool = False,
    share: Share | None = None,
    **options: Any,
) -> list[Report]:
    """Writes `out/<split>/` for every split the reader finds, or for those named; `options` go to `write_dataset`.

    With a `share` this task reads all rows and makes its part of the shards. `hold_out` moves that fraction of the pairs
    of a data set without splits to `test`, by a hash of their images.
    Raises UserError when there are no rows, a path leaves the image folder, or the same images stand in `train` and
    in another split and not `allow_leakage`; what stands in two splits otherwise is noted.
    """
    image_source = ImageSource(inputs.images or Path("."), inputs.hosts)
    encoding = encoding or Encoding()
    aside = out / (".tmp-rows" if share is None else f".tmp-rows-{share.number}")
    with locked(aside), ExitStack() as stack:
        found = gather(reader, inputs, image_source, stack, aside, hold_out, allow_leakage, splits)
        wanted = [split for split in found if not splits or split in splits]
        missing = sorted(set(splits) - set(found))
        if missing or not wanted:
            raise UserError(
                f"{reader.name}: no rows of split {', '.join(missing) or 'any name'}; there are {list(found)}"
            )
        reports = []
        for name in wanted:
            split = found[name]
            split.digest.update(repr((encoding, reader.name, split.notes)).encode())
            made = MakeSample(split.spool.close(), image_source, reader.name, encoding, split.extra, split.notes)
            reports.append(
                write_dataset(
                    made,
                    made.spool.count,
                    out,
                    name=reader.name,
                    split=name,
                    source=reader.source,
                    licence=reader.licence,
                    inputs=split.digest.hexdigest(),
                    share=share,
                    **options,
                )
            )
        return reports


def gather(
    reader: Reader,
    inputs: Inputs,
    image_source: ImageSource,
    stack: ExitStack,
    aside: Path,
    hold_out: float,
    allow_leakage: bool,
    meant: Sequence[str] = (),
) -> dict[str, Split]:
    """Reads all rows once: one spool a split, captions of repeated rows put beside it, a digest of all inputs.

    Splits in `meant` may have any name; another that looks like `train`, `val` or `test` misspelt is refused.
    """
    found: dict[str, Split] = {}
    places: dict[bytes, int] = {}
    ids = Ids()
    split_of: dict[bytes, str] = {}
    split_of_image: dict[bytes, str] = {}
    opened = image_source.open() if inputs.images else None
    for row in reader.rows(inputs):
        images = {
            role: image_source.place(value, row.where) if isinstance(value, str) and value else value
            for role, value in row.images.items()
        }
        mark = fingerprint(sorted((role, value) for role, value in images.items()))
        name = row.split or "train"
        if hold_out and name == "train" and int.from_bytes(mark[:4], "little") < hold_out * 2**32:
            name = "test"
        if name not in found and name not in meant:
            check_split(name, row.where)
        # A pair turned around is the same pair to a model that has seen it.
        both = fingerprint(sorted(map(repr, images.values())))
        is_whole = bool(images) and all(images.values())
        other = split_of.setdefault(both, name) if is_whole else name
        if other != name and "train" in (other, name) and not allow_leakage:
            raise UserError(
                f"{row.where}: the same image{'s' * (len(images) > 1)} ({', '.join(map(shown, images.values()))}) "
                f"stand in the splits {other} and {name}; fix the rows or add --allow-leakage"
            )
        if name not in found:
            found[name] = Split(stack.enter_context(spooled(aside / f"{name}.jsonl")))
        split = found[name]
        told = (row.id, row.captions, row.conversations, row.instruction, row.meta)
        split.digest.update(mark + repr(told).encode("utf-8", "surrogateescape"))
        if opened:
            split.digest.update(repr([opened.size(path) for path in images.values() if isinstance(path, str)]).encode())
        row = ids.given(dataclasses.replace(row, images=images, split=name), mark)
        same = fingerprint((name, row.id, mark))
        if same in places and row.captions:
            place = places[same]
            split.extra.setdefault(place, []).extend(row.captions)
            split.notes.setdefault(place, []).append("merged_row")
            continue
        if other != name:
            split.notes[split.spool.count] = ["in_two_splits"]
        elif len(images) > 1:
            shared = {split_of_image.setdefault(fingerprint(value), name) for value in images.values() if value}
            if len({name, *shared}) > 1 and "train" in {name, *shared}:
                split.notes[split.spool.count] = ["image_in_two_splits"]
        places[same] = split.spool.count
        split.spool.add(row)
    if not found:
        raise UserError(f"{inputs.annotations or inputs.images}: there are no rows")
    return dict(sorted(found.items(), key=lambda item: (item[0] != "train", item[0])))


def fingerprint(value: object) -> bytes:
    """Sixteen bytes that stand for `value` in memory."""
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogateescape"), digest_size=16).digest()


def shown(value: str | bytes) -> str:
    return value if isinstance(value, str) else f"{len(value)} bytes"

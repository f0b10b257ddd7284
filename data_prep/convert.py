"""Converts a reader's rows to shards: merges repeated rows, separates splits, normalises images, cleans captions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.ids import first_id
from data_prep.image_source import ImageSource
from data_prep.images import Encoding, is_grey, is_misnamed, prepare
from data_prep.plan import Choices, SplitPlan, planned
from data_prep.readers import Inputs, Reader, Row
from data_prep.report import Report
from data_prep.share import Share
from data_prep.web import is_url
from data_prep.writer import write_dataset
from onediff.data.sample import BadSample, Sample
from onediff.errors import UserError
from onediff.outputs import writing

OWN_NAMES = {"size": "table_size", "notes": "table_notes"}
"""New names in `meta` of columns whose names a conversion uses itself."""
CONTROLS = dict.fromkeys((*range(32), *range(127, 160), 0xFEFF), " ")
"""Characters that no caption means, such as NUL, a terminal's escape and the byte-order mark, become spaces."""


@dataclass(frozen=True)
class MakeSample:
    """Makes sample `i` of a split. Picklable; opens the images in the process that runs it."""

    plan: SplitPlan
    image_source: ImageSource
    source: str
    encoding: Encoding

    _paths: dict[int, list[str]] = field(default_factory=dict, compare=False, repr=False)
    """Sizes of the images of finished samples, until `sizes` returns them."""

    def __call__(self, i: int) -> Sample:
        row, notes = self.plan[i]
        try:
            if row.fault:
                raise BadSample("incomplete", row.fault)
            row = replace(row, images=self.image_source.placed(row.images, row.where))
            self._paths[i] = paths_of(row.images)
            return self.sample(row if row.id else replace(row, id=first_id(row)), notes)
        except BadSample as bad:
            merged = tuple(note for note in notes if note == "merged_row")  # rows that are skipped with this one
            raise BadSample(bad.kind, f"{row.where}: {bad.reason}", merged) from bad

    def sizes(self, i: int) -> list[int]:
        """Bytes of the source images of sample `i`; -1 for one that is missing or remote."""
        paths = self._paths.pop(i, None)
        if paths is None:
            row = self.plan[i][0]
            paths = paths_of(self.image_source.placed(row.images, row.where))
        return [-1 if is_url(path) else self.image_source.open().size(path) for path in paths]

    def sample(self, row: Row, notes: list[str]) -> Sample:
        """The sample of a row. Raises `BadSample`, whose reason does not yet name the row."""
        clean = [" ".join(caption.translate(CONTROLS).split()) for caption in row.captions]
        kept = tuple(caption for caption in clean if any(map(str.isprintable, caption)))
        notes += ["blank_caption"] * (len(clean) - len(kept))
        if row.instruction and " ".join(row.instruction.split()) in kept:
            notes.append("instruction_is_caption")  # the question would contain the answer
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
        meta = {OWN_NAMES.get(name, name): value for name, value in row.meta.items()}
        if sizes:
            meta["size"] = {role: list(size) for role, size in sizes.items()}
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


def paths_of(images: dict[str, str | bytes]) -> list[str]:
    """The images that are files or URLs."""
    return [value for value in images.values() if isinstance(value, str)]


def convert(
    reader: Reader,
    inputs: Inputs,
    out: Path,
    *,
    choices: Choices | None = None,
    encoding: Encoding | None = None,
    share: Share | None = None,
    **options: Any,
) -> list[Report]:
    """Writes `out/<split>/` for every split that the reader finds, or for the chosen ones; passes `options` to
    `write_dataset`.

    With a `share`, makes only its part of the shards, following the plan made by the first task. Raises UserError if there
    are no rows, a path leaves the image folder, or a table has the same images in `train` and in another split.
    """
    images = inputs.images or Path(".")
    if isinstance(options.get("processes"), str):  # workers on other machines have other working directories
        out, images = out.absolute(), images.absolute()
    image_source = ImageSource(images, inputs.hosts)
    choices, encoding = choices or Choices(), encoding or Encoding()
    with writing(out), planned(reader, inputs, image_source, choices, out, share) as plan:
        found = plan.splits
        wanted = [split for split in found if not choices.splits or split in choices.splits]
        missing = sorted(set(choices.splits) - set(found))
        if missing or not wanted:
            raise UserError(
                f"{reader.name}: no rows of split {', '.join(missing) or 'any name'}; there are {', '.join(found)}"
            )
        return [
            write_dataset(
                MakeSample(found[name], image_source, reader.name, encoding),
                found[name].count,
                out,
                name=reader.name,
                split=name,
                source=reader.source,
                licence=reader.licence,
                inputs=found[name].digest(reader.name, repr(encoding)),
                extra={"leakage": found[name].leakage} if found[name].leakage else {},
                share=share,
                trusted=plan.shared and share is None,
                **options,
            )
            for name in wanted
        ]

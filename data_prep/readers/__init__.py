"""Readers for data sets in their own layouts, found by name: `reader("spot-the-diff")`.

A reader is a `Reader` object: some facts and a function from the user's paths to `Row`s. Another package adds one with an
entry point in the group `onediff.readers`, `name = module:READER` (docs/extending.md has a worked example).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.splits import split_name as split_name
from onediff.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from data_prep.readers.batches import RowBatch

BUILT_IN = (
    *("spot-the-diff", "clevr-change", "image-editing-request", "birds-to-words", "instruct-pix2pix", "magicbrush"),
    *("levir-cc", "second-cc", "rscc", "aurora", "img-diff", "medical-diff-vqa", "vdiff-bench"),
    *("llava-558k", "llava-665k", "hf", "webdataset", "generic"),
)
GROUP = "onediff.readers"


@dataclass(frozen=True)
class Row:
    """One row of a data set, unchecked: captions may be blank, and images may be missing.

    `images` maps `before`/`after`, or `image`, to a path in the image folder, `ARCHIVE#MEMBER` in it, a URL, or encoded
    bytes if the annotations contain them. `where` locates the row for users: `train.json row 7`. Rows with the same `id`,
    `split` and `images` become one sample with all their captions; a blank id is made from the images' paths.
    """

    where: str
    id: str
    split: str
    images: dict[str, str | bytes]
    captions: tuple[str, ...] = ()
    conversations: tuple[dict[str, str], ...] = ()
    instruction: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    """Why the row gives no sample, if something is missing or broken; the row is then skipped and counted."""

    def __post_init__(self) -> None:
        if isinstance(self.captions, str):  # each letter would become a caption
            raise UserError(f"{self.where}: the reader gives `captions` as one string; it must be a tuple of strings")


@dataclass(frozen=True)
class Inputs:
    """The user's options. `columns` renames columns of a table: `{"before": "left_image"}`; images named by URL are
    fetched from `hosts`."""

    annotations: Path | None
    images: Path | None
    columns: dict[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()

    def annotation(self, *names: str) -> Path:
        """The annotation file: `--annotations` itself, or the first of `names` that exists below it.

        Raises UserError that names the missing file.
        """
        base = self.annotations or self.images
        if base is None:
            raise UserError("--annotations: this data set needs its annotations; name the file or folder")
        if base.is_file():
            return base
        for name in names:
            if (base / name).is_file():
                return base / name
        raise UserError(f"{base}: no {' or '.join(names)} here; name its folder with --annotations")

    def split_files(self, *names: str) -> list[Path]:
        """The annotations if they are a file, else those of the files `names` that are in their folder.

        Raises UserError if there are none.
        """
        others, last, base = ", ".join(names[:-1]), names[-1], self.annotations
        if base is None:
            raise UserError(f"--annotations: name the folder with {others} and {last}")
        files = [base] if base.is_file() else [base / name for name in names if (base / name).is_file()]
        if not files:
            raise UserError(f"{base}: no {others} or {last} here")
        return files


@dataclass(frozen=True)
class Reader:
    """A data set's own layout; `layout` describes it.

    The splits of a `published` data set are its authors': images shared by two splits are recorded, not refused.
    """

    name: str
    summary: str
    source: str
    licence: str
    layout: str
    rows: Callable[[Inputs], Iterator[Row]]
    published: bool = False
    batches: Callable[[Inputs], Iterator[RowBatch]] | None = None
    """The same rows by column, if the data set is a table: a million rows then take seconds, not a minute."""


def reader(name: str) -> Reader:
    """The reader of that name. Raises UserError that lists the known names."""
    if name in BUILT_IN:
        return importlib.import_module(f"data_prep.readers.{name.replace('-', '_')}").READER
    from onediff.config.entry_points import load

    for point in _added():
        if point.name == name:
            found = load(point, "reader")
            if not isinstance(found, Reader):
                raise UserError(f"reader {name!r}: {point.value} is not a data_prep.readers.Reader")
            return found
    from difflib import get_close_matches

    close = get_close_matches(name, names(), n=1)
    raise UserError(
        f"no reader {name!r}; {f'did you mean {close[0]!r}?' if close else 'there are ' + ', '.join(names())}"
    )


def names() -> list[str]:
    """All names, those of other packages last."""
    return [*BUILT_IN, *sorted(point.name for point in _added() if point.name not in BUILT_IN)]


def _added() -> Iterable[EntryPoint]:
    """Readers of other packages."""
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)

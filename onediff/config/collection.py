"""The file that `onediff data build` reads: a collection of data sets."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from onediff.config.section import Section


class Captioning(Section):
    """Captions written by a language model, instead of the data set's own."""

    model: str
    """Name of the model at the endpoint."""
    base_url: str | None = None
    """OpenAI-compatible endpoint; defaults to OPENAI_BASE_URL, else OpenAI's."""
    prompt: str = "edit"
    """`edit`, `pair`, or a file."""
    per_minute: float | None = Field(None, gt=0)
    """Most requests per minute."""
    concurrency: int = Field(8, gt=0)
    """Concurrent requests."""


class Retrieval(Section):
    """Pairs found by similarity among the single images of `images`."""

    model: str
    """Hugging Face vision model, by name or folder."""
    captions: Path
    """Table with the captions of the single images."""
    captions_reader: str = "generic"
    """Reader of that table."""
    low: float = Field(0.7, ge=-1, le=1)
    """Least cosine similarity of a pair."""
    high: float = Field(0.95, ge=-1, le=1)
    """Above this, images are near-duplicates."""
    nearest: int = Field(20, gt=0)
    """Nearest neighbours considered per image."""
    each: int = Field(2, gt=0)
    """Most pairs per image."""


class CollectionPart(Section):
    """One data set of the collection."""

    reader: str = "generic"
    """Name of the reader, as in `onediff data convert`."""
    annotations: Path | None = None
    """Annotation file, folder or table."""
    images: Path | None = None
    """Folder, tar or zip of images."""
    weight: float = Field(1.0, gt=0)
    """Share in training, relative to the other parts."""
    task: str | None = None
    """Key of its instructions in training (`data.sets.NAME.task`)."""
    published: int | None = None
    """Number of samples that its authors state, for comparison."""
    max_side: int | None = Field(None, gt=0)
    """Larger images are shrunk to this longer side, in pixels."""
    splits: list[str] = []
    """Only these splits; empty for all."""
    allow_leakage: bool = False
    """Accept images that occur in two splits."""
    max_skipped: str = Field("10%", pattern=r"^\d+(\.\d+)?%?$")
    """Most unusable rows, as a percentage or a number."""
    fetch: tuple[str, ...] = ()
    """Hosts from which to fetch images given by URL; `any` allows every public address."""
    retrieve: Retrieval | None = None
    """Find the pairs first; `captions`, with the prompt `pair`, then describes them."""
    captions: Captioning | None = None
    """Have a language model write the captions."""

    @model_validator(mode="after")
    def _retrieved_pairs_are_captioned(self) -> CollectionPart:
        if self.retrieve and (self.captions is None or self.images is None):
            raise ValueError("retrieve: needs `images`, a folder, and `captions`, because found pairs have no captions")
        return self

    def missing_files(self) -> list[Path]:
        """The raw files that do not exist."""
        needed = (self.annotations, self.images, self.retrieve.captions if self.retrieve else None)
        return [path for path in needed if path is not None and not path.exists()]


class Collection(Section):
    """A collection of data sets, written below one folder."""

    out: Path
    """Folder that receives one folder per part."""
    parts: dict[str, CollectionPart] = Field(min_length=1)
    """The data sets by name."""

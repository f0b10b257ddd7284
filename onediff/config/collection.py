"""What a collection of data sets consists of: the file that `onediff data build` reads."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from onediff.config.section import Section


class Captioning(Section):
    """Captions by a language model in place of the data set's own."""

    model: str
    """Name of the model at the endpoint."""
    base_url: str | None = None
    """OpenAI-compatible endpoint; default: OPENAI_BASE_URL, else OpenAI's."""
    prompt: str = "edit"
    """`edit`, `pair`, or a file."""
    per_minute: float | None = Field(None, gt=0)
    """Most requests a minute."""
    concurrency: int = Field(8, gt=0)
    """Requests at once."""


class Retrieval(Section):
    """Pairs found among the single photographs of `images`."""

    model: str
    """Hugging Face vision model, by name or folder."""
    captions: Path
    """What is said of the single images."""
    captions_reader: str = "generic"
    """Reader of that table."""
    low: float = Field(0.7, ge=-1, le=1)
    """Least cosine similarity of a pair."""
    high: float = Field(0.95, ge=-1, le=1)
    """Above this, images are near-duplicates."""
    nearest: int = Field(20, gt=0)
    """Neighbours to look at."""
    each: int = Field(2, gt=0)
    """Most pairs that an image is in."""


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
    """Samples that its authors publish, for comparison."""
    max_side: int | None = Field(None, gt=0)
    """Larger images are shrunk to this longer side, in pixels."""
    splits: list[str] = []
    """Only these splits; all of them where empty."""
    allow_leakage: bool = False
    """Accept images that stand in two splits."""
    max_skipped: str = Field("10%", pattern=r"^\d+(\.\d+)?%?$")
    """Most rows that may be unusable: a percentage or a number."""
    fetch: tuple[str, ...] = ()
    """Hosts from which images named by URL are fetched; `any` stands for all with public addresses."""
    retrieve: Retrieval | None = None
    """Find the pairs first; `captions` then says who describes them, with the prompt `pair`."""
    captions: Captioning | None = None
    """Captions by a language model."""

    @model_validator(mode="after")
    def _retrieved_pairs_are_captioned(self) -> CollectionPart:
        if self.retrieve and (self.captions is None or self.images is None):
            raise ValueError("retrieve: needs `images`, a folder, and `captions`, since found pairs have none")
        return self


class Collection(Section):
    """The parts, and the folder that each becomes a folder in."""

    out: Path
    parts: dict[str, CollectionPart] = Field(min_length=1)

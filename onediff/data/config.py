"""Which data sets there are, how samples become sequences, and what the stream does with bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from onediff.config.section import Section
from onediff.data.remote import below, is_url


class DataSet(Section):
    """One data set: a folder with one sub-folder of shards per split."""

    path: str
    """Folder that holds `<split>/manifest.json`; relative paths start at the working directory. Or a URL of such a folder
    (`https://…`, `s3://…`, `gs://…`), or `pipe:` and a command that prints the file put in place of `{}`."""
    split: str = "train"
    """Split that training reads."""
    task: str | None = None
    """Instruction key for its samples, instead of `pair`, `single` or `couple` by what a sample holds."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, values: Any) -> Any:
        return {"path": values} if isinstance(values, str) else values

    @property
    def folder(self) -> str:
        """Path or URL of the split's shards."""
        return below(self.path, self.split) if is_url(self.path) else str(Path(self.path) / self.split)


class CacheConfig(Section):
    """Local copies of shards that lie elsewhere."""

    folder: str | None = None
    """On a disk of the node; all processes of the node share it. By default `onediff-shards-<user id>` in the system's
    folder for temporary files."""
    gigabytes: float = Field(50.0, gt=0)
    """Size of all copies together; what was used longest ago makes room."""


class PromptConfig(Section):
    """The words around image places and answers; the default is Vicuna's template (LLaVA-1.5's `v1`)."""

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    """Before the first turn."""
    user: str = "USER: "
    """Before a user's turn."""
    assistant: str = " ASSISTANT:"
    """Before an answer."""
    instructions: dict[str, str] = {
        "pair": "Describe the differences between the two images.",
        "single": "Describe the image.",
        "couple": "Describe the first image, then the second image.",
    }
    """Instruction per task; a sample's own `instruction` wins, and any `task` named by a data set may be added."""

    couple_answer: str = "First image: {first} Second image: {second}"
    """The answer learned for two coupled images."""

    @model_validator(mode="after")
    def _has_the_tasks(self) -> PromptConfig:
        missing = {"pair", "single", "couple"} - set(self.instructions)
        if missing:
            raise ValueError(f"`instructions` needs a text for {sorted(missing)[0]!r}")
        return self


class DataConfig(Section):
    """The data stream."""

    sets: dict[str, DataSet] = Field(min_length=1)
    """Data sets by the name that phases and evaluation use."""
    cache: CacheConfig = CacheConfig()
    """Where shards are kept that a data set has at a URL."""
    prompt: PromptConfig = PromptConfig()
    """Prompt template and instructions."""
    max_tokens: int = Field(2048, gt=0)
    """Longest sequence, image and delta places included."""
    too_long: Literal["cut", "skip"] = "cut"
    """A longer sample loses the end of its answer, or is passed over; both are counted."""
    seed: int = 0
    """Order of samples, choice among captions."""
    other_order: bool = False
    """Lets a run resume though the global batch, the data sets, their weights or the seed changed, and with them the order
    of samples: some of the current epoch then come twice or not at all."""
    block: int = Field(1024, gt=0)
    """Samples of a lane that are shuffled together."""
    workers: int = Field(2, ge=0)
    """Decoding processes a rank; 0 decodes in the training process. Changes nothing in the order."""
    prefetch: int = Field(2, gt=0)
    """Micro-batches that each worker prepares ahead."""
    max_pixels: int = Field(100_000_000, gt=0, le=178_000_000)
    """A picture whose header promises more is skipped unread; Pillow refuses any above 178 million."""
    pixels: Literal["fast", "exact"] = "exact"
    """`exact`: the very pixels of the Hugging Face processors, by Pillow. `fast`: the same filter in vector code, 2 to 3
    times as fast, 0.01 of 255 off on average and 2 at most."""
    bad_share: float = Field(0.01, ge=0, le=1)
    """Share of unreadable samples above which the run stops (once 100 samples were read)."""
    bad_in_a_row: int = Field(50, gt=0)
    """Unreadable samples in a row, within one lane, after which the run stops."""

"""Data sets, prompts, and how the data loader treats samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from onediff.config.addresses import below, is_url
from onediff.config.section import Section, nearest
from onediff.config.templates import TEMPLATES, Template


class DataSet(Section):
    """A data set: a folder with one subfolder of shards per split."""

    path: str
    """Folder that contains `<split>/manifest.json`; relative paths start at the working directory. May also be a URL
    (`https://…`, `s3://…`, `gs://…`, `az://…`, `hf://…`), or `pipe:` and a command that prints the file whose name replaces
    `{}`."""
    split: str = "train"
    """Split used for training."""
    task: str | None = None
    """Instruction key for its samples, instead of `pair`, `single` or `couple`."""
    features: str | None = None
    """Folder or URL of precomputed features of the frozen tower, with one subfolder per split, as `onediff data features`
    writes them. Training then reads them instead of running the tower. Not for phases that train the tower."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, values: Any) -> Any:
        return {"path": values} if isinstance(values, str) else values

    @property
    def folder(self) -> str:
        """Path or URL of the split's shards."""
        return _in(self.path, self.split)

    @property
    def features_folder(self) -> str | None:
        """Path or URL of the split's features, if given."""
        return None if self.features is None else _in(self.features, self.split)


def _in(base: str, split: str) -> str:
    return below(base, split) if is_url(base) else str(Path(base) / split)


class CacheConfig(Section):
    """The local cache of remote shards."""

    folder: str | None = None
    """Folder on a local disk, shared by all processes of the node; by default `onediff-shards-<user id>` in the system's
    temporary folder."""
    gigabytes: float = Field(50.0, gt=0)
    """Size limit of the cache; the least recently used shards are removed first."""


class PromptConfig(Section):
    """The text around images and answers. A string instead of a mapping is the name of a template."""

    template: str = "vicuna"
    """`vicuna`, `llava` (Vicuna's with a line break after the images, as in LLaVA-1.5), `chatml`, `llama3`, `plain`, or
    `chat` for the template of the language model's tokenizer. Only the template's special tokens are special; the same
    characters in a caption or an instruction are ordinary text."""
    system: str | None = None
    """The system message, instead of the template's own. In `vicuna` and `llava` it needs its own space at the end."""
    user: str | None = None
    """Text before a user's turn, instead of the template's own."""
    assistant: str | None = None
    """Text before an answer, instead of the template's own. A space follows it, unless it ends with a line break."""
    end: str | None = None
    """The special token that ends an answer, instead of the template's own or the tokenizer's end-of-text token."""
    instructions: dict[str, str | list[str]] = {
        "pair": "Describe the differences between the two images.",
        "single": "Describe the image.",
        "couple": "Describe the first image, then the second image.",
    }
    """Instruction per task, or several wordings of it. In training each sample draws one by `data.seed`; inference uses the
    first. A sample's own `instruction` takes precedence. Add an entry for every `task` of a data set. `<image>` in an
    instruction marks the place of an image."""

    couple_answer: str = "First image: {first} Second image: {second}"
    """The answer for two coupled images."""
    in_pieces: bool = False
    """Tokenise each part of the template separately, as early versions did; their runs and models keep this setting."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, values: Any) -> Any:
        return {"template": values} if isinstance(values, str) else values

    @field_validator("template")
    @classmethod
    def _known(cls, template: str) -> str:
        if template not in (*TEMPLATES, "chat"):
            raise ValueError(f"no template {template!r}{nearest(template, (*TEMPLATES, 'chat'))}")
        return template

    @model_validator(mode="after")
    def _has_the_tasks(self) -> PromptConfig:
        missing = {"pair", "single", "couple"} - set(self.instructions)
        if missing:
            raise ValueError(f"`instructions` needs a text for {sorted(missing)[0]!r}")
        for task in self.instructions:
            if not self.wordings(task) or not all(wording.strip() for wording in self.wordings(task)):
                raise ValueError(f"`instructions` needs a text for {task!r}, not an empty one")
        return self

    @model_validator(mode="after")
    def _one_template(self) -> PromptConfig:
        own = [name for name in ("user", "assistant", "end") if getattr(self, name) is not None]
        if self.template == "chat" and own:
            raise ValueError(
                f"`chat` takes the whole template from the tokenizer: remove `{own[0]}`, or write data.prompt=chat to "
                "replace the whole section"
            )
        return self

    def wordings(self, task: str) -> list[str]:
        """The instructions of a task."""
        found = self.instructions[task]
        return [found] if isinstance(found, str) else found

    def named(self) -> Template:
        """The named template, with the texts set here replacing its own."""
        own = {name: getattr(self, name) for name in ("system", "user", "assistant", "end")}
        return replace(TEMPLATES[self.template], **{name: text for name, text in own.items() if text is not None})


def as_first_written(prompt: Any) -> Any:
    """The `prompt` section of a run or saved model with its original meaning.

    Sections that name no template are older than templates, and those models were trained on prompts tokenised in pieces.
    This makes no difference if the template has no text next to other text.
    """
    if not isinstance(prompt, dict) or "template" in prompt:
        return prompt
    met = [prompt.get("system"), prompt.get("user"), str(prompt.get("assistant") or "")[-1:].isspace()]
    return {**prompt, "in_pieces": True} if any(met) else prompt


class DataConfig(Section):
    """Data sets and data loading."""

    sets: dict[str, DataSet] = Field(min_length=1)
    """Data sets by name; phases and evaluation refer to them by these names."""
    cache: CacheConfig = CacheConfig()
    """The local cache of remote shards."""
    prompt: PromptConfig = PromptConfig()
    """Prompt template and instructions; a string is the name of a template."""
    max_tokens: int = Field(2048, gt=0)
    """Longest sequence, including image and delta tokens."""
    too_long: Literal["cut", "skip"] = "cut"
    """How to treat longer samples: `cut` drops the end of the answer, `skip` drops the sample. Both are counted."""
    seed: int = 0
    """Seed of the order of samples and of the choice among captions."""
    other_order: bool = False
    """Allow resuming after a change of the global batch, the data sets, their weights or the seed, all of which change the
    order of samples. Some samples of the current epoch are then repeated or left out."""
    block: int = Field(1024, gt=0)
    """Samples of a lane that are shuffled together."""
    workers: int = Field(2, ge=0)
    """Decoding processes per rank; 0 decodes in the training process. The order of samples does not depend on it."""
    prefetch: int = Field(2, gt=0)
    """Micro-batches to prefetch, and at least this many rows per worker."""
    max_pixels: int = Field(100_000_000, gt=0, le=178_000_000)
    """Images with more pixels, according to their headers, are skipped without decoding; Pillow's own limit is 178
    million."""
    pixels: Literal["fast", "exact"] = "exact"
    """`exact` gives the pixels of the Hugging Face processors, bit for bit. `fast` applies the same filter in vectorised
    code: up to twice as fast, off by 0.01 of 255 on average and by at most 2."""
    bad_share: float = Field(0.01, ge=0, le=1)
    """Stop the run if more than this share of the samples is unreadable, after the first 100."""
    bad_in_a_row: int = Field(50, gt=0)
    """Stop the run after this many unreadable samples in a row within a lane."""

    def from_images(self) -> DataConfig:
        """The same configuration without features, so that every image is decoded."""
        plain = {name: one.model_copy(update={"features": None}) for name, one in self.sets.items()}
        return self.model_copy(update={"sets": plain})

"""Which data sets there are, how samples become sequences, and what the stream does with bad ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from onediff.config.addresses import below, is_url
from onediff.config.section import Section, nearest
from onediff.config.templates import TEMPLATES, Template


class DataSet(Section):
    """One data set: a folder with one sub-folder of shards per split."""

    path: str
    """Folder that holds `<split>/manifest.json`; relative paths start at the working directory. Or a URL of such a folder
    (`https://…`, `s3://…`, `gs://…`, `az://…`, `hf://…`), or `pipe:` and a command that prints the file named in place of
    `{}`."""
    split: str = "train"
    """Split that training reads."""
    task: str | None = None
    """Instruction key for its samples, instead of `pair`, `single` or `couple` by what a sample holds."""
    features: str | None = None
    """Folder or URL of what the frozen tower gives for these images, `<split>` below it, as `onediff data features` writes
    it; training then reads that instead of running the tower. Not for phases that train the tower."""

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
        """Path or URL of the split's features, where they are named."""
        return None if self.features is None else _in(self.features, self.split)


def _in(base: str, split: str) -> str:
    return below(base, split) if is_url(base) else str(Path(base) / split)


class CacheConfig(Section):
    """Local copies of shards at URLs."""

    folder: str | None = None
    """A folder on a disk of the node, shared by all its processes. By default `onediff-shards-<user id>` in the
    system's folder for temporary files."""
    gigabytes: float = Field(50.0, gt=0)
    """Size of all copies together; the least recently used are removed first."""


class PromptConfig(Section):
    """The words around image places and answers. A word instead of a mapping is the name of a template."""

    template: str = "vicuna"
    """`vicuna`, `llava` (Vicuna's with a line break behind the images, as LLaVA-1.5 has it), `chatml`, `llama3`, `plain`;
    `chat` is the one that the language model's tokenizer brings. Special tokens in it become what they are; the same
    characters in a caption or an instruction stay text."""
    system: str | None = None
    """The system message, instead of the template's own. In `vicuna` and `llava` the text as it stands there, its
    space at the end included."""
    user: str | None = None
    """Before a user's turn, instead of the template's own."""
    assistant: str | None = None
    """Before an answer, instead of the template's own; a space comes between, unless it ends with a line break."""
    end: str | None = None
    """The special token that ends an answer, instead of the template's own or the tokenizer's end of text."""
    instructions: dict[str, str | list[str]] = {
        "pair": "Describe the differences between the two images.",
        "single": "Describe the image.",
        "couple": "Describe the first image, then the second image.",
    }
    """Instruction per task, or several wordings of it: each sample draws one by `data.seed`, and the first is asked when the
    model is used. A sample's own `instruction` wins, and any `task` named by a data set may be added. `<image>` in an
    instruction says where an image goes."""

    couple_answer: str = "First image: {first} Second image: {second}"
    """The answer learned for two coupled images."""
    in_pieces: bool = False
    """Tokenise each part of the template on its own, as early runs and saved models did; they keep doing so."""

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
                f"`chat` takes the whole template from the tokenizer: leave out `{own[0]}`, or write data.prompt=chat, "
                "which leaves out all that this configuration says of prompts"
            )
        return self

    def wordings(self, task: str) -> list[str]:
        """The instructions of a task."""
        found = self.instructions[task]
        return [found] if isinstance(found, str) else found

    def named(self) -> Template:
        """The template by that name, with what is set here instead of its own."""
        own = {name: getattr(self, name) for name in ("system", "user", "assistant", "end")}
        return replace(TEMPLATES[self.template], **{name: text for name, text in own.items() if text is not None})


def as_first_written(prompt: Any) -> Any:
    """The `prompt` section of a run or a saved model, as it is meant: those that name no template are older than templates,
    and were trained on prompts tokenised in pieces. That is the same where no text of the template meets other text."""
    if not isinstance(prompt, dict) or "template" in prompt:
        return prompt
    met = [prompt.get("system"), prompt.get("user"), str(prompt.get("assistant") or "")[-1:].isspace()]
    return {**prompt, "in_pieces": True} if any(met) else prompt


class DataConfig(Section):
    """The data stream."""

    sets: dict[str, DataSet] = Field(min_length=1)
    """Data sets, by the names that phases and evaluation use for them."""
    cache: CacheConfig = CacheConfig()
    """Where shards of data sets at URLs are cached."""
    prompt: PromptConfig = PromptConfig()
    """Prompt template and instructions; a word is the name of a template."""
    max_tokens: int = Field(2048, gt=0)
    """Longest sequence, image and delta places included."""
    too_long: Literal["cut", "skip"] = "cut"
    """What happens to a longer sample: `cut` drops the end of its answer, `skip` drops the sample. Both are counted."""
    seed: int = 0
    """Order of samples, choice among captions."""
    other_order: bool = False
    """Lets a run resume although a change of the global batch, the data sets, their weights or the seed changed the
    order of samples. Some samples of the current epoch are then read twice or not at all."""
    block: int = Field(1024, gt=0)
    """Samples of a lane that are shuffled together."""
    workers: int = Field(2, ge=0)
    """Decoding processes per rank; 0 decodes in the training process. The order of samples does not depend on it."""
    prefetch: int = Field(2, gt=0)
    """Micro-batches prepared ahead of the one in use, and at least this many rows per worker."""
    max_pixels: int = Field(100_000_000, gt=0, le=178_000_000)
    """An image whose header promises more is skipped unread; Pillow refuses any above 178 million."""
    pixels: Literal["fast", "exact"] = "exact"
    """`exact`: the pixels of the Hugging Face processors, bit for bit. `fast`: scaled by the same filter in vector code,
    up to twice as fast, 0.01 of 255 off on average and 2 at most."""
    bad_share: float = Field(0.01, ge=0, le=1)
    """The run stops when more than this share of the samples is unreadable, once 100 have been read."""
    bad_in_a_row: int = Field(50, gt=0)
    """The run stops after this many unreadable samples in a row within one lane."""

    def from_images(self) -> DataConfig:
        """The same, with every image decoded though its features are kept."""
        plain = {name: one.model_copy(update={"features": None}) for name, one in self.sets.items()}
        return self.model_copy(update={"sets": plain})

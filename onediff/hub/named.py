"""The models and tokenizers that a configuration names. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from onediff.config.model import ModelConfig


@dataclass(frozen=True)
class Named:
    """A folder or hub repository, and what is read from it."""

    where: str
    """The configuration key, such as `model.vision.name`."""
    name: str
    revision: str | None = None
    weights: bool = True
    tokenizer: bool = False
    config: bool = True
    """Whether its `config.json` is read; the configuration may contain the architecture instead."""

    @property
    def is_path(self) -> bool:
        """Whether it can only be a folder, not a repository."""
        return self.name.startswith((".", "/", "~")) or self.name.count("/") > 1 or Path(self.name).exists()

    def folder(self, environ: Mapping[str, str] = os.environ) -> Path | None:
        """The local folder of its files: the folder itself, or its snapshot in the hub's cache, or None."""
        if Path(self.name).is_dir():
            return Path(self.name)
        return None if self.is_path else snapshot(self.name, self.revision, environ)


def named_in(model: ModelConfig, parts: Container[str] = ("vision", "delta", "language")) -> list[Named]:
    """Everything that `model` reads from folders or the hub if the weights of `parts` come from there."""
    language, found = model.language, []
    tokenizer = language.name if language.tokenizer is None else language.tokenizer
    own = tokenizer == language.name
    if isinstance(tokenizer, str) and not own:
        found.append(Named("model.language.tokenizer", tokenizer, weights=False, tokenizer=True, config=False))
    if model.vision.name is not None:
        found.append(
            Named("model.vision.name", model.vision.name, model.vision.revision, config=model.vision.config is None)
        )
    if language.name is not None:
        spelt_out = language.config is not None
        found.append(
            Named("model.language.name", language.name, language.revision, tokenizer=own, config=not spelt_out)
        )
    if model.delta.bert is not None:
        found.append(Named("model.delta.bert", model.delta.bert))
    return found


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The hub's cache on this machine, found as huggingface_hub does from these variables."""
    home = environ.get("HF_HOME")
    if home is None:
        home = str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    folder = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or str(Path(home) / "hub")
    return Path(os.path.expandvars(folder)).expanduser()


def snapshot(name: str, revision: str | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The cached folder of a hub model, or None (huggingface_hub documents the layout)."""
    folder = cache_folder(environ) / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision or ""
    found = folder / "snapshots" / commit
    return found if commit and found.is_dir() else None

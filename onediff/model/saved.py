"""An exported model: a folder of safetensors and configuration, without optimizer states or a run.

DIR/onediff.yaml                    architecture, prompts, preprocessing
DIR/vision/                         the tower, for `from_pretrained`
DIR/language/                       the language model, for `from_pretrained`
DIR/tokenizer/                      its tokenizer
DIR/adapter/                        its LoRA adapter for `peft`, if it was trained with one; `language/` has it merged
DIR/delta.safetensors, DIR/projector.safetensors
DIR/config.json, DIR/processor_config.json, DIR/modeling_onediff.py, …
                                    files that Hugging Face `transformers` loads without this project
                                    (`onediff.hub.huggingface`)
DIR/README.md                       the model card
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onediff.atomic import aside, clear_dead, replace_folder
from onediff.config.data import DataConfig, PromptConfig, as_first_written
from onediff.config.model import SAVED_MODEL_FILE, LoraConfig, ModelConfig
from onediff.config.renamed import under_new_names
from onediff.config.section import Section, validated
from onediff.config.yaml_file import read_mapping
from onediff.data.rows import Processor
from onediff.errors import UserError
from onediff.hub.huggingface import write_huggingface
from onediff.model.build import build_processor
from onediff.model.lora import save_adapter
from onediff.model.onediff import OneDiffModel
from onediff.parallel.placement import ALONE, Placement

FILE = SAVED_MODEL_FILE
OWN_PARTS = ("delta", "projector")
SHARD_BYTES = 5 * 10**9
"""Largest size of a weight file of the tower or language model; larger models are split into several files with an index."""


class SavedModel(Section):
    """The contents of `onediff.yaml`."""

    model: ModelConfig
    """The model; `vision`, `language` and `tokenizer` are folders next to the file."""
    prompt: PromptConfig
    """The prompt template and instructions used in training."""
    trained: dict[str, Any] = {}
    """The run, phase and step of the weights, and the identity of their checkpoint."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_it_was_trained(cls, prompt: Any) -> Any:
        return as_first_written(prompt)


def save_model(
    model: OneDiffModel,
    config: ModelConfig,
    prompt: PromptConfig,
    tokenizer: Any,
    folder: Path,
    trained: dict[str, Any],
    adapter: tuple[LoraConfig, str | None, dict[str, Tensor]] | None = None,
    shard_bytes: int = SHARD_BYTES,
    card: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes `folder`, first under a temporary name, and replaces a saved model there.

    `adapter` is the adapter merged into the language model: its settings, the name of its base model, its weights. `card`
    adds a model card. File permissions follow the umask. Raises UserError if `folder` contains something else, or cannot
    be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: this is a file, not a folder; choose another")
    if folder.exists() and any(folder.iterdir()) and not (folder / FILE).is_file():
        raise UserError(f"{folder}: this folder is not empty and not a saved model; choose another")
    work = aside(folder)
    clear_dead(folder)
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    model.vision.model.save_pretrained(work / "vision", max_shard_size=shard_bytes)
    model.language.save_pretrained(work / "language", max_shard_size=shard_bytes)
    tokenizer.save_pretrained(work / "tokenizer")
    if adapter is not None:
        save_adapter(work / "adapter", *adapter)
    for part in OWN_PARTS:
        tensors = {name: tensor.contiguous() for name, tensor in getattr(model, part).state_dict().items()}
        save_file(tensors, work / f"{part}.safetensors")
    saved = SavedModel(model=config.with_parts("vision", "language", "tokenizer"), prompt=prompt, trained=trained)
    (work / FILE).write_text(yaml.safe_dump(saved.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    write_huggingface(work, model, config, prompt, tokenizer)
    card(work)
    open_to_others(work)
    replace_folder(work, folder)


def open_to_others(folder: Path) -> None:
    """Sets permissions below `folder` by the umask, because safetensors makes files readable only by their owner."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def weights_digest(folder: Path) -> str:
    """The SHA-256 of a saved model, over all weight files and `onediff.yaml`.

    Reads all weights once, at about a second per gigabyte.
    """
    total = hashlib.sha256()
    for file in sorted([folder / FILE, *folder.rglob("*.safetensors")]):
        total.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        with file.open("rb") as data:
            while piece := data.read(1 << 24):
                total.update(piece)
    return total.hexdigest()


def description(folder: Path) -> SavedModel:
    """The description of a saved model. Raises UserError if the folder is not one."""
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{folder}: not a saved model (no {FILE}); write one with `onediff export RUN DIR`")
    return validated(SavedModel, under_new_names(read_mapping(file)), str(file))


def load_model(folder: Path, placement: Placement = ALONE) -> tuple[OneDiffModel, Processor, Any, SavedModel]:
    """Loads a saved model in evaluation mode: the model, its processor, tokenizer and description.

    The model is on the CPU in its own dtype, or on the device and in the dtype of `placement`, with the language model split
    over the tensor group. Raises UserError if the folder is not a saved model or is damaged.
    """
    saved = description(folder)
    config = saved.model.with_parts(*(str(folder / part) for part in ("vision", "language", "tokenizer")))
    model = OneDiffModel(config, placement=placement)
    for part in OWN_PARTS:
        path = folder / f"{part}.safetensors"
        try:
            # `assign` keeps the precision of the files.
            getattr(model, part).load_state_dict(load_file(path), assign=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}; export the run again") from None
    placement.settle(model)
    data = DataConfig(sets={"none": {"path": "."}}, max_tokens=1_000_000, prompt=saved.prompt)
    processor, tokenizer = build_processor(config, data, folder / "tokenizer")
    return model.eval(), processor, tokenizer, saved

"""Turns a run's checkpoint into a saved model."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from onediff.atomic import put_back
from onediff.config.compose import load_run
from onediff.config.model import LanguageConfig
from onediff.errors import UserError
from onediff.evaluation.confidence import FILE as CONFIDENCE
from onediff.hub.card import write_card
from onediff.model.architecture import architecture
from onediff.model.build import architecture_only, build_processor
from onediff.model.onediff import OneDiffModel
from onediff.model.saved import FILE, SHARD_BYTES, description, save_model
from onediff.parallel.placement import ALONE, Placement
from onediff.runs.address import Address
from onediff.runs.folder import require_run
from onediff.training.checkpoint import load_weights, read_manifest
from onediff.training.checkpoint.reader import CheckpointReader
from onediff.training.checkpoint.weights import Weights
from onediff.training.found import FoundCheckpoint, found

MODEL_FOLDER = "model"
"""Where a run keeps its own export, below the run folder."""


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_run(run: Path, target: Path, dtype: str = "as-came", shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """Writes the newest checkpoint of `run`, or the checkpoint in its address, to `target`; returns what was written.

    `dtype` is a key of `DTYPES`, `as-trained` for the type that the phase computed in, or `as-came` for the type of the
    pretrained language model (without one, `as-trained`). Raises UserError if `run` is not a run or has no such
    checkpoint, or if a weight overflows the type.
    """
    address = Address.of(run)
    folder = require_run(address.folder)
    config = load_run(folder.config)
    at = found(address)
    processor, tokenizer = build_processor(config.model, config.data, folder.tokenizer)
    bare = architecture_only(config.model)
    model = OneDiffModel(bare, placement=Placement(ALONE.topology, filled_later=True))
    load_weights(model, at.checkpoint)
    manifest = read_manifest(at.checkpoint)
    trained = {"run": config.name, "phase": at.phase, "step": at.step, "checkpoint": manifest.identity}
    weights = Weights(CheckpointReader(at.checkpoint, manifest))
    lora = weights.stored
    adapter = None if lora is None else (lora, config.model.language.name, weights.adapter())
    computed = {getattr(torch, parameter.dtype) for parameter in manifest.parameters.values()}
    wanted = DTYPES.get(dtype) or _type_of(config.model.language, dtype, max(computed, key=lambda one: one.itemsize))
    become(model, wanted)
    own = address.folder / own_export(address)

    def beside(written: Path) -> None:
        if (own / CONFIDENCE).is_file() and holds(own, at):
            shutil.copyfile(own / CONFIDENCE, written / CONFIDENCE)
        write_card(written, folder, config, trained)

    save_model(model, bare, processor.prompter.config, tokenizer, target, trained, adapter, shard_bytes, beside)
    return trained | {"dtype": next(name for name, one in DTYPES.items() if one == wanted)}


def _type_of(language: LanguageConfig, asked: str, computed: torch.dtype) -> torch.dtype:
    """The type that `asked` stands for if the phase computed in `computed`."""
    if asked == "as-trained" or language.name is None:
        return computed
    came = architecture(language, "model.language").dtype
    return next((one for one in DTYPES.values() if one == came), computed)


def become(model: OneDiffModel, dtype: torch.dtype) -> None:
    """Rounds every parameter to `dtype`, one at a time. Raises UserError if a value is out of its range."""
    for name, parameter in model.named_parameters():
        rounded = parameter.data.to(dtype)
        if dtype == torch.float16 and rounded.isinf().any() and parameter.data.isfinite().all():
            raise UserError(f"--dtype: {name} has values out of fp16's range; export with --dtype bf16 or fp32")
        parameter.data = rounded


def saved_model_of(path: Path) -> Path:
    """The folder of a saved model for `path`: `path` itself, or a run's own export of the checkpoint in the address (by
    default the newest), which is written if it is missing or out of date.

    The export of a read-only run goes to the user's cache. Raises UserError if `path` is neither.
    """
    address = Address.of(path)
    if (address.folder / FILE).is_file() and address.at is None:
        return address.folder
    at = found(address)
    name = own_export(address)
    if holds(address.folder / name, at):
        return address.folder / name
    try:
        lock = (address.folder / ".model.lock").open("w")
        target = address.folder / name
    except OSError:
        target = cache_of(address.folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / ".model.lock").open("w")
    # All ranks of an evaluation call this: the first exports, the others find the export.
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        put_back(target)
        if not holds(target, at):
            # Without rounding, so that it writes the same captions as the training loop.
            export_run(path, target, dtype="fp32")
    return target


def own_export(address: Address) -> str:
    """The folder name of a run's own export of the checkpoint in the address, by default the newest."""
    return MODEL_FOLDER if address.at is None else f"{MODEL_FOLDER}-{address.at.replace(':', '-')}"


def holds(folder: Path, at: FoundCheckpoint) -> bool:
    """Whether `folder` is an export of this checkpoint, and not of an earlier one of the same phase and step.

    A run reaches a step again after a rollback, or if it starts over in the same folder. Older exports do not name
    their checkpoint; they are known by phase and step.
    """
    if not (folder / FILE).is_file():
        return False
    known, identity = description(folder).trained, read_manifest(at.checkpoint).identity
    recorded = (known.get("phase"), known.get("step"), known.get("checkpoint", identity))
    return recorded == (at.phase, at.step, identity)


def cache_of(run: Path) -> Path:
    """The folder for exports of a read-only run: below XDG_CACHE_HOME, named after the run's full path."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "onediff" / "exports" / hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]

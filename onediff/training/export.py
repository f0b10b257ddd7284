"""From a checkpoint of a run to a saved model."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

from onediff.config.compose import load_run
from onediff.model.build import architecture_only, build_row_maker
from onediff.model.onediff import OneDiffModel
from onediff.model.saved import FILE, description, save_model
from onediff.training.address import Address, found
from onediff.training.checkpoint import load_weights, read_manifest
from onediff.training.checkpoint.reader import Reader
from onediff.training.checkpoint.weights import Weights
from onediff.training.folder import require_run

MODEL_FOLDER = "model"
"""Where a run keeps its own export, below the run folder."""


def export_run(run: Path, target: Path) -> dict[str, Any]:
    """Writes a checkpoint of `run` to `target`: the newest, or the one that its address names; returns which one it was.

    Raises UserError when `run` is not a run or has no such checkpoint.
    """
    address = Address.of(run)
    folder = require_run(address.folder)
    config = load_run(folder.config)
    at = found(address)
    maker, tokenizer = build_row_maker(config.model, config.data, folder.tokenizer)
    bare = architecture_only(config.model)
    model = OneDiffModel(bare)
    load_weights(model, at.checkpoint)
    trained = {"run": config.name, "phase": at.phase, "step": at.step}
    weights = Weights(Reader(at.checkpoint, read_manifest(at.checkpoint)))
    lora = weights.stored
    adapter = None if lora is None else (lora, config.model.language.name, weights.adapter())
    save_model(model, bare, maker.prompter.config, tokenizer, target, trained, adapter)
    return trained


def saved_model_of(path: Path) -> Path:
    """The folder of a saved model for `path`: itself, or for a run an export below it, made where it is missing or old,
    of its newest checkpoint or of the one that the address names.

    Raises UserError when `path` is neither.
    """
    address = Address.of(path)
    if (address.folder / FILE).is_file() and address.at is None:
        return address.folder
    at = found(address)
    target = address.folder / MODEL_FOLDER
    if address.at is not None:
        target = target.with_name(f"{MODEL_FOLDER}-{address.at.replace(':', '-')}")
    # The ranks of an evaluation all come here: the first one exports, the others find it done.
    with (address.folder / ".model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / FILE).is_file():
            trained = description(target).trained
            if (trained.get("phase"), trained.get("step")) == (at.phase, at.step):
                return target
        export_run(path, target)
    return target

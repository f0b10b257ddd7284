"""From the last checkpoint of a run to a saved model."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

from onediff.config.compose import load_run
from onediff.errors import UserError
from onediff.model.build import architecture_only, build_row_maker
from onediff.model.onediff import OneDiffModel
from onediff.model.saved import FILE, description, save_model
from onediff.training.checkpoint import latest_checkpoint, load_weights, read_manifest
from onediff.training.checkpoint.reader import Reader
from onediff.training.checkpoint.weights import Weights
from onediff.training.folder import RunFolder, require_model, require_run

MODEL_FOLDER = "model"
"""Where a run keeps its own export, below the run folder."""


def export_run(run: Path, target: Path) -> dict[str, Any]:
    """Writes the newest checkpoint of the newest phase of `run` to `target`; returns which one it was.

    Raises UserError when `run` is not a run or has no checkpoint.
    """
    folder = require_run(run)
    config = load_run(folder.config)
    found = newest(folder, list(config.phases))
    maker, tokenizer = build_row_maker(config.model, config.data, folder.tokenizer)
    bare = architecture_only(config.model)
    model = OneDiffModel(bare)
    load_weights(model, found["checkpoint"])
    trained = {"run": config.name, "phase": found["phase"], "step": found["step"]}
    weights = Weights(Reader(found["checkpoint"], read_manifest(found["checkpoint"])))
    lora = weights.stored
    adapter = None if lora is None else (lora, config.model.language.name, weights.adapter())
    save_model(model, bare, maker.prompter.config, tokenizer, target, trained, adapter)
    return trained


def newest(folder: RunFolder, phases: list[str]) -> dict[str, Any]:
    """Phase, step and checkpoint of the newest weights of a run. Raises UserError when it has none."""
    for phase in reversed(phases):
        checkpoint = latest_checkpoint(folder.checkpoints(phase))
        if checkpoint is not None:
            return {"phase": phase, "step": int(checkpoint.name.rpartition("-")[2]), "checkpoint": checkpoint}
    raise UserError(f"{folder.path}: this run has no checkpoint yet; train it with `onediff train`")


def saved_model_of(path: Path) -> Path:
    """The folder of a saved model for `path`: itself, or for a run its newest export, made where it is missing or old.

    Raises UserError when `path` is neither.
    """
    if (path / FILE).is_file():
        return path
    require_model(path)
    folder = RunFolder(path)
    config = load_run(folder.config)
    found = newest(folder, list(config.phases))
    target = path / MODEL_FOLDER
    # The ranks of an evaluation all come here: the first one exports, the others find it done.
    with (path / ".model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / FILE).is_file():
            trained = description(target).trained
            if (trained.get("phase"), trained.get("step")) == (found["phase"], found["step"]):
                return target
        export_run(path, target)
    return target

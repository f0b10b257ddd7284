"""A new run that continues from a checkpoint of another, with its own settings and its own record."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from onediff.config.compose import load_run, write_run
from onediff.errors import UserError
from onediff.runs.address import Address
from onediff.runs.folder import RunFolder
from onediff.tracking.identity import remember, traces
from onediff.tracking.place import remembered
from onediff.training.checkpoint.folder import latest_checkpoint
from onediff.training.found import FoundCheckpoint, found


def branch(address: Address, target: Path) -> FoundCheckpoint:
    """Creates the run folder `target` with the checkpoint at `address` and the earlier phases that led to it.

    Checkpoint files never change, so they are hard-linked if the file system allows it. Raises UserError if there is no
    such checkpoint or `target` exists.
    """
    if not address.is_run:
        raise UserError(f"{address}: not a run; start one from a saved model with `init: {address.folder}`")
    if target.exists():
        raise UserError(f"{target}: already exists; name a new folder")
    start = found(address)
    source, aside = RunFolder(address.folder), RunFolder(target.with_name(f".tmp-{target.name}"))
    config = load_run(source.config)
    shutil.rmtree(aside.path, ignore_errors=True)
    aside.path.mkdir(parents=True)
    write_run(config.model_copy(update={"name": target.name}), aside.config)
    if source.tokenizer.is_dir():
        shutil.copytree(source.tokenizer, aside.tokenizer)
    order = list(config.phases)
    for phase in order[: order.index(start.phase)]:
        if metrics := source.finished(phase):
            aside.finish(phase, metrics)
        if checkpoint := latest_checkpoint(source.checkpoints(phase)):
            linked(checkpoint, aside.checkpoints(phase) / checkpoint.name)
    linked(start.checkpoint, aside.checkpoints(start.phase) / start.checkpoint.name)
    came_from = f"{address.folder.resolve()}@{start.phase}:{start.step}"
    lineage = {"onediff.branched_from": came_from, **traces(address.folder, start.phase)}
    aside.path.rename(target)
    remember(target.resolve(), config.tracking, remembered(address.folder), lineage)
    return start


def linked(source: Path, target: Path) -> None:
    """Copies the folder `source` to `target`, sharing files if possible."""

    def share(file: str, name: str) -> None:
        try:
            os.link(file, name)
        except OSError:  # another file system, or one without links
            shutil.copy2(file, name)

    shutil.copytree(source, target, copy_function=share)

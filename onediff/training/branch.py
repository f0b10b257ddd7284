"""A new run that goes on from a checkpoint of another: its own settings, its own record, the steps before in common."""

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
    """Makes the run folder `target` with the checkpoint that `address` means, and those that its phase began from.

    Files of checkpoints are never changed, so they are shared by hard links where the file system has them. Raises
    UserError where there is no such checkpoint, or `target` exists.
    """
    if not address.is_run:
        raise UserError(f"{address}: not a run; a saved model is the beginning of one by `init: {address.folder}`")
    if target.exists():
        raise UserError(f"{target}: exists already; name a new folder")
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
        if figures := source.finished(phase):
            aside.finish(phase, figures)
        if checkpoint := latest_checkpoint(source.checkpoints(phase)):
            linked(checkpoint, aside.checkpoints(phase) / checkpoint.name)
    linked(start.checkpoint, aside.checkpoints(start.phase) / start.checkpoint.name)
    came_from = f"{address.folder.resolve()}@{start.phase}:{start.step}"
    lineage = {"onediff.branched_from": came_from, **traces(address.folder, start.phase)}
    aside.path.rename(target)
    remember(target.resolve(), config.tracking, remembered(address.folder), lineage)
    return start


def linked(source: Path, target: Path) -> None:
    """The folder `source` again as `target`, sharing its files where that can be."""

    def share(file: str, name: str) -> None:
        try:
            os.link(file, name)
        except OSError:  # another file system, or one without links
            shutil.copy2(file, name)

    shutil.copytree(source, target, copy_function=share)

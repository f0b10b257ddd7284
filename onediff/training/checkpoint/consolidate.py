"""Writes a checkpoint's weights as ordinary safetensors files for other programs."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import torch

from onediff.errors import UserError
from onediff.parallel.safetensors_writer import Entry, write_model
from onediff.training.checkpoint.manifest import verify_checkpoint
from onediff.training.checkpoint.reader import CheckpointReader
from onediff.training.checkpoint.weights import Weights


def consolidate(
    path: Path, folder: Path, dtype: torch.dtype = torch.float32, shard_bytes: int = 5 * 10**9
) -> list[Path]:
    """Writes the full weights of the checkpoint `path` to `folder`, with adapters merged and one parameter in memory at a
    time; returns the files.

    Raises UserError if the checkpoint is damaged or `folder` is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; choose another folder")
    manifest = verify_checkpoint(path)
    weights = Weights(CheckpointReader(path, manifest))
    aside = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    entries = [
        Entry(name, dtype, shape, partial(weights.merged, name, dtype)) for name, shape in weights.shapes.items()
    ]
    files = write_model(aside, entries, shard_bytes)
    if folder.exists():
        folder.rmdir()
    aside.rename(folder)
    return [folder / file.name for file in files]

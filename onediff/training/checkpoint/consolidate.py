"""A checkpoint's weights as ordinary safetensors files that other programs read."""

from __future__ import annotations

import shutil
from functools import partial
from math import prod
from pathlib import Path

import torch

from onediff.errors import UserError
from onediff.parallel.block import Block, Piece
from onediff.parallel.safetensors_writer import Entry, write_model
from onediff.training.checkpoint.load import Reader
from onediff.training.checkpoint.manifest import WEIGHT, verify_checkpoint


def consolidate(
    path: Path, folder: Path, dtype: torch.dtype = torch.float32, shard_bytes: int = 5 * 10**9
) -> list[Path]:
    """Writes the full weights of the checkpoint `path` to `folder`, one parameter in memory at a time; returns the files.

    Raises UserError when the checkpoint is damaged or `folder` holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; choose another folder")
    manifest = verify_checkpoint(path)
    reader = Reader(path, manifest)

    def whole(name: str) -> torch.Tensor:
        shape = tuple(manifest.parameters[name].shape)
        flat = torch.empty(prod(shape), dtype=dtype)
        reader.fill(flat, WEIGHT, name, Piece(Block.whole(shape), 0, flat.numel()))
        return flat.view(shape)

    aside = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    entries = [Entry(name, dtype, tuple(p.shape), partial(whole, name)) for name, p in manifest.parameters.items()]
    files = write_model(aside, entries, shard_bytes)
    if folder.exists():
        folder.rmdir()
    aside.rename(folder)
    return [folder / file.name for file in files]

"""Reads ranges of a checkpoint's parameters from the files that hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from onediff.errors import UserError
from onediff.parallel.block import BlockRange, overlaps
from onediff.runs.copies import bring
from onediff.training.checkpoint.manifest import CheckpointManifest


class CheckpointReader:
    """Reads ranges of one checkpoint's parameters; opens files when first needed."""

    def __init__(self, folder: Path, manifest: CheckpointManifest, heed: Callable[[], None] = lambda: None) -> None:
        """`heed` is called before each range, and may raise to end the reading."""
        self.folder, self.heed = folder, heed
        self.manifest = manifest
        self._files = list(manifest.files)
        self._open: dict[str, Any] = {}

    def file(self, name: str) -> Any:
        """The open safetensors file."""
        from safetensors import safe_open

        if name not in self._open:
            bring(self.folder / name)
            self._open[name] = safe_open(self.folder / name, "pt")
        return self._open[name]

    def fill(self, target: torch.Tensor, state: str, name: str, piece: BlockRange) -> None:
        """Copies the range `piece` of one state of the parameter `name` into `target`, [length].

        Raises UserError if the files do not hold all of it.
        """
        self.heed()
        found = 0
        for file, source in self.manifest.parameters[name].near(piece, self._files):
            for overlap in overlaps(source, piece):
                begin = overlap.source_start
                stored = self.file(file).get_slice(f"{state}/{name}")[begin : begin + overlap.source_length]
                overlap.copy(stored, target)
                found += overlap.rows * overlap.columns
        if found != piece.length:
            raise UserError(
                f"{self.folder}: {state} of {name!r} has {found} of {piece.length} values; it is incomplete"
            )

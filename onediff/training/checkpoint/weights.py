"""The weights of a checkpoint for a model with the same adapters, other adapters, or none."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import prod
from pathlib import Path

import torch

from onediff.config.model import LoraConfig
from onediff.errors import UserError
from onediff.model.lora import halves_of, initial, is_adapter, plain_name, update
from onediff.parallel.block import Block, BlockRange
from onediff.parallel.materialize import InMemory
from onediff.training.checkpoint.manifest import WEIGHT, read_manifest
from onediff.training.checkpoint.reader import CheckpointReader


def adapters_of(extra: dict) -> LoraConfig | None:
    """The adapters of a checkpoint's language model, from its `extra`."""
    return LoraConfig.model_validate(extra["lora"]) if extra.get("lora") else None


def must_keep_adapters(path: Path, lora: LoraConfig | None, where: str) -> None:
    """Raises UserError if the phase `where` would continue from the checkpoint `path` with other adapters."""
    if adapters_of(read_manifest(path).extra) != lora:
        raise UserError(f"{where}.lora: differs from that of {path}; a phase keeps its adapters to its end")


def part_of(name: str) -> str:
    """The part of the model that a parameter or buffer belongs to."""
    return name.partition(".")[0]


class Weights:
    """The weights of a checkpoint under a model's names; merges adapters that the model does not have.

    `lora` describes the model's adapters. If they are the checkpoint's, they are loaded; otherwise they start over beside
    merged weights. Merging holds one full parameter in memory at a time.
    """

    def __init__(self, reader: CheckpointReader, lora: LoraConfig | None = None) -> None:
        self.reader = reader
        self.stored = adapters_of(reader.manifest.extra)
        self.goes_on = lora == self.stored
        parameters = reader.manifest.parameters
        self._stored_name = {plain_name(name): name for name in parameters if not is_adapter(name)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of each parameter of the model without adapters."""
        parameters = self.reader.manifest.parameters
        return {name: tuple(parameters[stored].shape) for name, stored in self._stored_name.items()}

    def must_fit(self, names: Iterable[str], parts: Collection[str] | None = None) -> None:
        """Raises UserError if `names` are not the checkpoint's parameters, or differ from them in `parts`."""
        wanted = {plain_name(name) for name in names if not is_adapter(name)}
        strange = sorted(name for name in wanted ^ set(self._stored_name) if parts is None or part_of(name) in parts)
        if strange:
            lacks = "it has" if strange[0] in wanted else "this one has"
            raise UserError(f"{self.reader.folder}: of another model: {lacks} no parameter {strange[0]!r}")

    def fill(self, name: str, piece: BlockRange, target: torch.Tensor) -> None:
        """Copies the range `piece` of the model's parameter `name` into the flat tensor `target`."""
        if is_adapter(name):
            if self.goes_on:
                self.reader.fill(target, WEIGHT, name, piece)
            else:
                InMemory({name: initial(name, piece.block.shape)}).fill(name, piece, target)
            return
        plain = plain_name(name)
        stored = self._stored_name[plain]
        shape = tuple(self.reader.manifest.parameters[stored].shape)
        if shape != piece.block.shape:
            raise UserError(
                f"{self.reader.folder}: of another model: {plain!r} is {shape} there, {piece.block.shape} here"
            )
        self.reader.fill(target, WEIGHT, stored, piece)
        a, b = halves_of(plain)
        goes_on_here = self.goes_on and stored == name
        if stored != plain and a in self.reader.manifest.parameters and not goes_on_here:
            assert self.stored is not None
            added = torch.empty(target.shape, dtype=torch.float32, device=target.device)
            InMemory({plain: update(self.full(a), self.full(b), self.stored)}).fill(plain, piece, added)
            target.add_(added)

    def full(self, stored: str) -> torch.Tensor:
        """A full stored parameter in fp32."""
        shape = tuple(self.reader.manifest.parameters[stored].shape)
        flat = torch.empty(prod(shape), dtype=torch.float32)
        self.reader.fill(flat, WEIGHT, stored, BlockRange(Block.whole(shape), 0, flat.numel()))
        return flat.view(shape)

    def merged(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A full parameter of the model without adapters."""
        shape = self.shapes[name]
        flat = torch.empty(prod(shape), dtype=torch.float32)
        self.fill(name, BlockRange(Block.whole(shape), 0, flat.numel()), flat)
        return flat.view(shape).to(dtype)

    def adapter(self, part: str = "language.") -> dict[str, torch.Tensor]:
        """The adapter's full parameters, named as in the language model."""
        names = [name for name in self.reader.manifest.parameters if is_adapter(name)]
        return {name.removeprefix(part): self.full(name) for name in names}

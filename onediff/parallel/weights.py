"""Weights in and out: each rank reads its own ranges of a Hugging Face model's files, and writes them back as one model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from onediff.errors import UserError
from onediff.parallel.agreement import gathered
from onediff.parallel.block import Block, Piece, block_of, overlaps
from onediff.parallel.safetensors_writer import INDEX, SINGLE, Entry, in_library_order, write_model


def local_part(parameter: Any) -> tuple[Piece, torch.Tensor]:
    """The range of `parameter` that this rank stores, and the flat tensor, `[length]`, that it is stored in (a view)."""
    block = block_of(parameter)
    if not hasattr(parameter, "ds_id"):
        return Piece(block, 0, block.real), parameter.detach().view(-1).narrow(0, 0, block.real)
    share = parameter.ds_tensor.ds_numel
    offset = min(share * dist.get_rank(parameter.ds_process_group), block.real)
    length = min(share, block.real - offset)
    return Piece(block, offset, length), parameter.ds_tensor.detach().narrow(0, 0, length)


def put_weights(
    module: nn.Module,
    fill: Callable[[str, Piece, torch.Tensor], None],
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Calls `fill(name, piece, target)` for the part that this rank stores of each parameter whose name is `wanted`."""
    for name, parameter in module.named_parameters():
        if wanted(name):
            piece, target = local_part(parameter)
            fill(name, piece, target)


class PretrainedFiles:
    """The safetensors files of a Hugging Face model, in a folder or on the hub, read by ranges."""

    def __init__(self, name: str, revision: str | None = None) -> None:
        """Finds the files of `name`. Raises UserError when it has no safetensors, or a file of its index is missing."""
        self.name = name
        self._open: dict[str, Any] = {}
        index = _file(name, INDEX, revision)
        if index is None:
            single = _file(name, SINGLE, revision)
            if single is None:
                raise UserError(f"{name}: has neither {SINGLE} nor {INDEX}")
            self.file_of = dict.fromkeys(self._handle(single).keys(), single)
            return
        self.file_of = {}
        for key, file in json.loads(Path(index).read_text())["weight_map"].items():
            path = str(Path(index).with_name(file)) if Path(name).is_dir() else _file(name, file, revision)
            if path is None or not Path(path).is_file():
                raise UserError(f"{name}: {file} is missing, although {INDEX} names it")
            self.file_of[key] = path

    def prefix_for(self, model: nn.Module) -> tuple[str, str] | None:
        """What to take off the model's parameter names and what to put before them to find them here.

        A language model may be stored with its head or without, a tower alone or inside a larger model. None when no
        such change makes the names and shapes agree.
        """
        shapes = {name: block_of(p).shape for name, p in model.named_parameters()}
        first = next(iter(shapes))
        heads = ("", first.split(".", 1)[0] + ".")
        for off in heads:
            tail = first.removeprefix(off)
            for key in sorted(self.file_of, key=len):
                if key == tail or key.endswith("." + tail):
                    put = key[: len(key) - len(tail)]
                    if all(self._shape(put + name.removeprefix(off)) == shape for name, shape in shapes.items()):
                        return off, put
        return None

    def _shape(self, key: str) -> tuple[int, ...] | None:
        if key not in self.file_of:
            return None
        return tuple(self._handle(self.file_of[key]).get_slice(key).get_shape())

    def _handle(self, path: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if path not in self._open:
            try:
                self._open[path] = safe_open(path, "pt")
            except SafetensorError as error:
                raise UserError(f"{path}: not readable as safetensors: {error}; download it again") from None
        return self._open[path]

    def fill(self, key: str, piece: Piece, target: torch.Tensor) -> None:
        """Copies the range `piece` of the tensor `key` into the flat tensor `target`; reads the rows that it needs."""
        stored = self._handle(self.file_of[key]).get_slice(key)
        shape = tuple(stored.get_shape())
        if not shape:
            target.copy_(stored[...].view(1))
            return
        # The file gives whole rows along the first dimension: take those that the piece touches.
        row = Block.whole(shape).inner
        for overlap in overlaps(Piece(Block.whole(shape), 0, row * shape[0]), piece):
            first, last = overlap.source_start, overlap.source_start + overlap.source_length
            top, bottom = first // row, -(-last // row)
            rows = stored[top:bottom].reshape(-1)
            overlap.copy(rows.narrow(0, first - top * row, last - first), target)


class Renamed:
    """Files in which the model's parameters have other names."""

    def __init__(self, files: PretrainedFiles, off: str, put: str) -> None:
        self.files, self.off, self.put = files, off, put

    def fill(self, name: str, piece: Piece, target: torch.Tensor) -> None:
        """Copies the range `piece` of the parameter `name` into the flat tensor `target`."""
        self.files.fill(self.put + name.removeprefix(self.off), piece, target)


def _file(name: str, file: str, revision: str | None) -> str | None:
    """The local path of one file of a model, downloaded when it is on the hub; None when it has none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return str(path) if path.is_file() else None
    from transformers.utils.hub import cached_file

    return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)


def export_weights(
    module: nn.Module, folder: Path, *, shard_bytes: int = 5 * 10**9, skip: Iterable[str] = ()
) -> list[Path]:
    """Writes the full parameters of a cut module as Hugging Face safetensors files, named as in the module. Collective.

    Rank 0 writes; it holds one parameter at a time. `skip` names parameters to leave out. Returns the files, on rank 0.
    """
    parameters = {name: p for name, p in module.named_parameters() if name not in set(skip)}
    mine = {name: local_part(p)[0] for name, p in parameters.items()}
    everyone: list[dict[str, Piece]] = gathered(mine)
    rank = dist.get_rank() if dist.is_initialized() else 0

    def whole(name: str) -> torch.Tensor:
        """The full parameter on rank 0; an empty tensor elsewhere."""
        piece, local = local_part(parameters[name])
        # Several ranks may hold the same range; the first one gives it.
        givers = {held[name]: number for number, held in reversed(list(enumerate(everyone))) if held[name].length}
        if rank:
            if givers.get(piece) == rank:
                dist.send(local.cpu().contiguous(), 0)
            return torch.empty(0)
        shape = piece.block.shape
        full = torch.empty(Block.whole(shape).real, dtype=local.dtype)
        target = Piece(Block.whole(shape), 0, full.numel())
        for other, giver in sorted(givers.items(), key=lambda item: item[1]):
            values = local.cpu() if giver == 0 else torch.empty(other.length, dtype=local.dtype)
            if giver:
                dist.recv(values, giver)
            for overlap in overlaps(other, target):
                overlap.copy(values.narrow(0, overlap.source_start, overlap.source_length), full)
        return full.view(shape)

    entries = [
        Entry(name, local_part(p)[1].dtype, block_of(p).shape, partial(whole, name)) for name, p in parameters.items()
    ]
    if rank:
        for entry in in_library_order(entries):
            entry.read()
        return []
    return write_model(folder, entries, shard_bytes)

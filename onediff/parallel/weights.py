"""Loads weights into this rank's parts of parameters, and exports full parameters as a Hugging Face folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from onediff.parallel.agreement import from_rank_zero, gathered
from onediff.parallel.block import Block, BlockRange, block_of, overlaps
from onediff.parallel.safetensors_writer import Entry, in_library_order, write_model
from onediff.zero.parameters import is_sharded, own_range


def local_part(parameter: Any) -> tuple[BlockRange, torch.Tensor]:
    """The range of `parameter` that this rank stores, and a view of its values, `[length]`."""
    block = block_of(parameter)
    if not is_sharded(parameter):
        return BlockRange(block, 0, block.real), parameter.detach().view(-1).narrow(0, 0, block.real)
    values, offset, share = own_range(parameter)
    offset = min(offset, block.real)
    length = min(share, block.real - offset)
    return BlockRange(block, offset, length), values.detach().narrow(0, 0, length)


def put_weights(
    module: nn.Module,
    fill: Callable[[str, BlockRange, torch.Tensor], None],
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Calls `fill(name, piece, target)` for this rank's part of each parameter for which `wanted(name)` is true."""
    for name, parameter in module.named_parameters():
        if wanted(name):
            piece, target = local_part(parameter)
            fill(name, piece, target)


def export_weights(
    module: nn.Module, folder: Path, *, shard_bytes: int = 5 * 10**9, skip: Iterable[str] = ()
) -> list[Path]:
    """Writes the full parameters of a sharded module as Hugging Face safetensors files. Collective.

    Rank 0 writes, with one parameter in memory at a time. `skip` names parameters to leave out. Returns the files on rank 0.
    """
    parameters = {name: p for name, p in module.named_parameters() if name not in set(skip)}
    whole = gatherer(parameters)
    entries = [
        Entry(name, local_part(p)[1].dtype, block_of(p).shape, partial(whole, name)) for name, p in parameters.items()
    ]
    if dist.is_initialized() and dist.get_rank():
        for entry in in_library_order(entries):
            entry.read()
        return []
    return write_model(folder, entries, shard_bytes)


def weights_digest(module: nn.Module, dtype: torch.dtype) -> str:
    """The SHA-256 of names, shapes and values (in `dtype`) of all parameters of a sharded module. Collective.

    Rank 0 holds one parameter at a time. Costs about a second per gigabyte.
    """
    parameters = dict(module.named_parameters())
    whole, digest = gatherer(parameters), hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        values = whole(name)
        digest.update(f"{name} {block_of(parameter).shape}".encode())
        digest.update(values.to(dtype).contiguous().view(-1).view(torch.uint8).numpy().data)
    return str(from_rank_zero(digest.hexdigest()))


def gatherer(parameters: dict[str, nn.Parameter]) -> Callable[[str], torch.Tensor]:
    """A collective function that returns a full parameter by name on rank 0, and an empty tensor elsewhere."""
    mine = {name: local_part(p)[0] for name, p in parameters.items()}
    everyone: list[dict[str, BlockRange]] = gathered(mine)
    rank = dist.get_rank() if dist.is_initialized() else 0

    def whole(name: str) -> torch.Tensor:
        """The full parameter on rank 0; an empty tensor elsewhere."""
        piece, local = local_part(parameters[name])
        # Several ranks may hold the same range; the first of them sends it.
        givers = {held[name]: number for number, held in reversed(list(enumerate(everyone))) if held[name].length}
        if rank:
            if givers.get(piece) == rank:
                dist.send(local.cpu().contiguous(), 0)
            return torch.empty(0)
        shape = piece.block.shape
        full = torch.empty(Block.whole(shape).real, dtype=local.dtype)
        target = BlockRange(Block.whole(shape), 0, full.numel())
        for other, giver in sorted(givers.items(), key=lambda item: item[1]):
            values = local.cpu() if giver == 0 else torch.empty(other.length, dtype=local.dtype)
            if giver:
                dist.recv(values, giver)
            for overlap in overlaps(other, target):
                overlap.copy(values.narrow(0, overlap.source_start, overlap.source_length), full)
        return full.view(shape)

    return whole

"""Reads a checkpoint into any engine: each rank reads the ranges that it holds, whichever ranks wrote them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onediff.config.model import LoraConfig
from onediff.errors import UserError
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.training.checkpoint.manifest import (
    WEIGHT,
    CheckpointManifest,
    check_file,
    read_manifest,
    verify_checkpoint,
)
from onediff.training.checkpoint.randomness import restore_random_states
from onediff.training.checkpoint.reader import CheckpointReader
from onediff.training.checkpoint.weights import Weights, part_of
from onediff.zero.protocol import ParameterShard, ShardedEngine, by_swap_group

SETTINGS = ("betas", "eps", "weight_decay", "peak_lr", "part", "name")
"""Optimizer group settings that come from the configuration; a change takes effect at the next step."""
KERNELS = ("fused", "foreach", "capturable")
"""Optimizer group settings that belong to the machine, not to the run."""


def load_checkpoint(engine: ShardedEngine, path: Path, *, heed: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Restores weights, moments, counts, learning rates and random states; returns `extra`. Collective.

    The engine may have any number of ranks and any ZeRO stage; with the same ones it continues bit for bit. Random states
    are restored only at the topology that wrote them. `verify` first checks every file's checksum; ranks share the files.
    `heed` is called between reads, and may raise UserError to end them. Raises UserError on every rank if the checkpoint is
    damaged or of another model.
    """
    path = Path(path)
    manifest = _checked(path, heed)
    parts = list(engine.shards())
    with raise_on_all_ranks():
        _must_fit(dict(engine.module.named_parameters()), parts, manifest, path)
        reader = CheckpointReader(path, manifest, heed)
        stepped = any(manifest.parameters[part.name].steps is not None for part in parts if part.owner is not None)
        with engine.swap_in(changes=True) as swapped:
            for group, members in groupby(sorted(parts, key=by_swap_group), lambda part: part.swapped):
                swapped.bring(group)
                _fill(engine, list(members), reader, stepped)
        _restore_rest(engine, reader)
    engine.publish_all()
    engine.continue_after(manifest.step)
    return manifest.extra


def _fill(engine: ShardedEngine, parts: list[ParameterShard], reader: CheckpointReader, stepped: bool) -> None:
    """Copies weights, moments and counts into parameter shards in memory."""
    if stepped:
        engine.create_moments(parts)
    steps: dict[int, tuple[torch.Tensor, int]] = {}
    for part in parts:
        stored = reader.manifest.parameters[part.name]
        reader.fill(part.weight, WEIGHT, part.name, part.piece)
        engine.publish(part)
        if part.owner is None:
            continue
        for key, values in engine.moments(part).items():
            if key in stored.states:
                reader.fill(part.of(values), key, part.name, part.piece)
            else:
                part.of(values).zero_()
        count = max(stored.steps or 0, steps.get(id(part.owner), (None, 0))[1])
        steps[id(part.owner)] = (part.owner, count)
    for owner, count in steps.values():
        engine.set_steps(owner, count)


def load_weights(
    module: torch.nn.Module,
    path: Path,
    *,
    lora: LoraConfig | None = None,
    parts: Collection[str] | None = None,
    heed: Callable[[], None] = lambda: None,
) -> None:
    """Loads only the weights, into a model without an engine. Collective if there are several ranks.

    `parts` limits loading to some parts of the model, such as `delta`; the checkpoint may then differ in the others.
    `lora` describes the model's adapters: if they are the checkpoint's, they are loaded; otherwise the checkpoint's are
    merged into the weights, and the model's, if any, start over. `heed` is called between reads, and may raise UserError to
    end them. Raises UserError on every rank if the checkpoint is damaged or of another model.
    """
    path = Path(path)
    manifest = _checked(path, heed)
    from onediff.parallel.weights import put_weights

    with raise_on_all_ranks():
        reader = CheckpointReader(path, manifest, heed)
        weights = Weights(reader, lora)
        weights.must_fit(dict(module.named_parameters()), parts)
        put_weights(module, weights.fill, lambda name: parts is None or part_of(name) in parts)
        _restore_buffers(module, reader, parts)


def read_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The full fp32 parameters of a checkpoint, one at a time, in one process, including frozen ones; adapters merged."""
    path = Path(path)
    weights = Weights(CheckpointReader(path, verify_checkpoint(path)))
    for name in weights.shapes:
        yield name, weights.merged(name)


def _checked(path: Path, heed: Callable[[], None]) -> CheckpointManifest:
    """The manifest, after the ranks together have checked every file."""
    with raise_on_all_ranks():
        manifest = read_manifest(path)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with raise_on_all_ranks():
        for number, name in enumerate(manifest.files):
            if number % world == rank:
                heed()
                check_file(path, name, manifest)
    return manifest


def _must_fit(parameters: dict[str, Any], parts: list[Any], manifest: CheckpointManifest, path: Path) -> None:
    """Raises UserError if the checkpoint is of a model with other parameters."""
    for name in parameters:
        if name not in manifest.parameters:
            raise UserError(f"{path}: of another model: it has no parameter {name!r}")
    for name in manifest.parameters:
        if name not in parameters:
            raise UserError(f"{path}: of another model: this one has no parameter {name!r}")
    for part in parts:
        stored = tuple(manifest.parameters[part.name].shape)
        if stored != part.piece.block.shape:
            raise UserError(f"{path}: of another model: {part.name!r} is {stored} there, {part.piece.block.shape} here")


def _restore_rest(engine: ShardedEngine, reader: CheckpointReader) -> None:
    """Restores the groups' other values, buffers and, if the topology is the same, this rank's random states."""
    groups, manifest = engine.optimizer_groups, reader.manifest
    if len(groups) == len(manifest.groups):
        for group, stored in zip(groups, manifest.groups, strict=True):
            stored = {key: value for key, value in stored.items() if key not in (*SETTINGS, *KERNELS)}
            group.update({k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in stored.items()})
    _restore_buffers(engine.module, reader)
    rank = dist.get_rank()
    ranks = (dist.get_world_size(), engine.tensor_size, engine.context_size)
    # Ranks that compute the same rows must draw the same numbers, which states of another topology do not ensure.
    if ranks == (manifest.world, manifest.tensor, manifest.context):
        file = reader.file(list(manifest.files)[rank])
        restore_random_states({key: file.get_tensor(key) for key in file.keys() if key.startswith("rng/")})  # noqa: SIM118


def _restore_buffers(module: torch.nn.Module, reader: CheckpointReader, parts: Collection[str] | None = None) -> None:
    buffers = {name: b for name, b in module.named_buffers() if parts is None or part_of(name) in parts}
    for name in reader.manifest.buffers:
        if name in buffers:
            buffers[name].copy_(reader.file(next(iter(reader.manifest.files))).get_tensor(f"buffer/{name}"))

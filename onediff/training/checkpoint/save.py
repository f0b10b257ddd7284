"""Writes checkpoints: each rank its own ranges, under a temporary name until all files are on disk."""

from __future__ import annotations

import pickle
import secrets
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
import torch.distributed as dist

from onediff.parallel.agreement import (
    bytes_by_rank_zero,
    first_of,
    from_rank_zero,
    gathered_by_owners,
    raise_on_all_ranks,
)
from onediff.parallel.block import block_of
from onediff.parallel.safetensors_writer import Entry, Written, write_safetensors
from onediff.runs.section import section
from onediff.training.checkpoint.files import Files, file_of, stamp
from onediff.training.checkpoint.finite import Finite
from onediff.training.checkpoint.folder import BEST, aside, commit, latest_checkpoint, name_of, point, prune, remove
from onediff.training.checkpoint.manifest import WEIGHT, CheckpointManifest, StoredParameter
from onediff.training.checkpoint.randomness import random_states
from onediff.training.checkpoint.table import NONE, MergedRow, RankTable, merged_row
from onediff.training.faults import TrainingFault
from onediff.zero.protocol import ParameterShard, ShardedEngine, SwapIn, by_swap_group


@dataclass
class _Pending:
    """A checkpoint whose files are being written."""

    manifest: CheckpointManifest
    """its files and parameters are added once all ranks have written"""
    table: RankTable
    finite: Finite
    written: Future[Written]
    best: bool
    """whether `best` will point to it"""


class CheckpointWriter:
    """Writes the checkpoints of a phase, one at a time.

    In the background mode, each rank copies its ranges to host memory (the size of its file), and a thread writes them
    while training continues. The checkpoint gets its final name in the first `poll` after every rank has written, or in
    `finish`; only then does `latest` move. All collectives run in the caller's thread.
    """

    def __init__(
        self, folder: Path, *, keep_last: int | None = None, keep_every: int | None = None, background: bool
    ) -> None:
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.background = background
        self._pending: _Pending | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")

    @section("saving")
    def save(self, engine: ShardedEngine, *, step: int, extra: dict[str, Any], best: bool = False) -> Path | None:
        """Starts a checkpoint; returns the checkpoint that this call finished, if any. Collective.

        A checkpoint holds the weights (the fp32 master if there is one), the optimizer's moments, counts and
        hyper-parameters, every rank's random states and rank 0's `extra` (plain JSON). `latest` then points to it.

        In the background mode that is the previous one, if it was unfinished; otherwise it is this one. `best` keeps this
        one until another is the best.

        Raises on every rank, and leaves the folder unchanged: UserError if one cannot write this checkpoint or could not
        write the previous one, TrainingFault if a value is not finite.
        """
        before = self.finish()
        rank, world = dist.get_rank(), dist.get_world_size()
        writing = aside(self.folder, step)
        manifest = CheckpointManifest(
            identity=str(from_rank_zero(secrets.token_hex(16))),
            step=step,
            world=world,
            tensor=engine.tensor_size,
            context=engine.context_size,
            zero_stage=engine.stage,
            extra=extra,
            groups=hyper_parameters(engine),
            parameters=described_parameters(engine) if rank == 0 else {},
            buffers=[name for name, _ in persistent_buffers(engine)],
        )
        with raise_on_all_ranks():
            if rank == 0:
                shutil.rmtree(writing, ignore_errors=True)
                writing.mkdir(parents=True)
        metadata = {"identity": manifest.identity, "step": str(step), "format": "onediff-checkpoint"}
        with engine.swap_in(changes=False) as swapped:
            entries, table = rank_entries(engine, swapped)
            finite = Finite()
            entries = [finite.noting(entry) for entry in entries]
            if self.background:
                entries = [_on_host(entry) for entry in entries]
            written = self._thread.submit(write_safetensors, writing / file_of(rank, world), entries, metadata)
            self._pending = _Pending(manifest, table, finite, written, best)
            return before if self.background else self.finish()

    def poll(self) -> Path | None:
        """The checkpoint in progress if every rank has written it, else None. Collective if one is in progress.

        Raises UserError on every rank when one could not write.
        """
        if self._pending is None:
            return None
        done = torch.tensor(int(self._pending.written.done()))
        dist.all_reduce(done, op=dist.ReduceOp.MIN)
        return self.finish() if int(done) else None

    @section("saving")
    def finish(self) -> Path | None:
        """Waits for the checkpoint in progress, if any, gives it its final name and returns it. Collective.

        Raises UserError on every rank when one could not write.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        with raise_on_all_ranks():
            written = pending.written.result()
        manifest = pending.manifest
        if (fault := first_of(pending.finite.first_fault())) is not None:
            self._drop(manifest.step, fault)
        files = [file_of(rank, manifest.world) for rank in range(manifest.world)]
        rows = gathered_by_owners(torch.from_numpy(pending.table.counted())).numpy()
        own = [merged_row(rows[:, number], files) for number in range(rows.shape[1])]
        states = cast(list[tuple[str, ...]], from_rank_zero(pending.table.states))
        news = own or pending.table.states != states  # ranks without news cost rank 0 nothing
        told = bytes_by_rank_zero(stamp(written) + (pickle.dumps((pending.table.states, own)) if news else b""))
        with raise_on_all_ranks():
            if dist.get_rank() == 0:
                manifest.files = Files.of_stamps(b"".join(one[:40] for one in told))
                records = [pickle.loads(one[40:]) if len(one) > 40 else (states, ()) for one in told]
                all_states, merged = zip(*records, strict=True)
                manifest.parameters = filled(manifest.parameters, chain.from_iterable(merged), all_states)
                manifest.write(aside(self.folder, manifest.step))
                commit(self.folder, manifest.step)
                if pending.best:
                    point(self.folder, BEST, manifest.step)
                removed = self._thread.submit(remove, prune(self.folder, self.keep_last, self.keep_every))
                if not self.background:
                    removed.result()
        return self.folder / name_of(manifest.step)

    def _drop(self, step: int, fault: str) -> NoReturn:
        with raise_on_all_ranks():
            if dist.get_rank() == 0:
                shutil.rmtree(aside(self.folder, step))
        state, _, parameter = fault.partition("/")
        good = latest_checkpoint(self.folder)
        kept = f"{good} stays the latest" if good else "there is none before it"
        raise TrainingFault(
            f"{parameter}: its {state} is not finite at step {step}, so no checkpoint was written; {kept}"
        )


def _on_host(entry: Entry) -> Entry:
    """The same entry with its current values, in host memory."""
    values = entry.read().detach().to("cpu", copy=True)
    return entry._replace(read=lambda: values)


def rank_entries(engine: ShardedEngine, swapped: SwapIn) -> tuple[list[Entry], RankTable]:
    """The entries that this rank writes, one swapped sub-group at a time, and their location in each parameter."""
    entries: list[Entry] = []
    number_of = {name: number for number, (name, _) in enumerate(engine.module.named_parameters())}
    rows, states = np.full((len(number_of), 6), NONE, dtype=np.int64), dict[tuple[str, ...], int]()
    for part in sorted(engine.shards(), key=by_swap_group):
        first, length = share_of(engine, part)
        tensors = {WEIGHT: part.values, **engine.moments(part)}
        block, steps = part.piece.block, engine.steps_of(part)
        kept = states.setdefault(tuple(tensors), len(states))
        place = (block.start, block.size, part.piece.offset + first, length)
        rows[number_of[part.name]] = (*place, NONE if steps is None else steps, kept)
        if length:
            for state, tensor in tensors.items():
                read = partial(_range, swapped, part, tensor, first, length)
                entries.append(Entry(f"{state}/{part.name}", tensor.dtype, (length,), read))
    generators = random_states()
    if dist.get_rank() == 0:
        generators |= {f"buffer/{name}": buffer for name, buffer in persistent_buffers(engine)}
    entries += [_whole(name, tensor) for name, tensor in generators.items()]
    return entries, RankTable(rows, list(states))


def described_parameters(engine: ShardedEngine) -> dict[str, StoredParameter]:
    """The model's parameters, without the ranges that ranks store."""
    return {
        name: StoredParameter(block.shape, str(parameter.dtype).removeprefix("torch."), block.dim, [], None, [])
        for name, parameter in engine.module.named_parameters()
        for block in [block_of(parameter)]
    }


def share_of(engine: ShardedEngine, part: ParameterShard) -> tuple[int, int]:
    """First element and length that this rank writes of a range: an equal share if several ranks hold it."""
    copies, number = 1, 0
    if part.shared:
        copies, number = dist.get_world_size(engine.data_group), dist.get_rank(engine.data_group)
    if part.piece.block.is_whole:
        copies, number = copies * engine.tensor_size, number * engine.tensor_size + engine.tensor_rank
    each = -(-part.piece.length // copies)
    first = min(each * number, part.piece.length)
    return first, min(each, part.piece.length - first)


def _range(swapped: SwapIn, part: ParameterShard, tensor: torch.Tensor, first: int, length: int) -> torch.Tensor:
    """`[length]` of the tensor that contains `part`, or of one of its moments."""
    swapped.bring(part.swapped)
    return part.of(tensor).narrow(0, first, length)


def _whole(name: str, tensor: torch.Tensor) -> Entry:
    return Entry(name, tensor.dtype, tensor.shape, lambda: tensor)


def persistent_buffers(engine: ShardedEngine) -> list[tuple[str, torch.Tensor]]:
    """Buffers that belong to the model's state; they are the same on all ranks."""
    module = engine.module
    kept = set(module.state_dict(keep_vars=True))
    return [(name, buffer) for name, buffer in module.named_buffers() if name in kept]


def hyper_parameters(engine: ShardedEngine) -> list[dict[str, Any]]:
    """Learning rate, weight decay, … of each parameter group, as plain values."""
    plain = (bool, int, float, str, list, tuple, type(None))
    return [
        {k: v for k, v in group.items() if k != "params" and isinstance(v, plain)} for group in engine.optimizer_groups
    ]


def filled(
    parameters: dict[str, StoredParameter], rows: Iterable[MergedRow], states: Sequence[Sequence[tuple[str, ...]]]
) -> dict[str, StoredParameter]:
    """The parameters with the ranges that all ranks store, without unstored ones, and the `states` of each rank's table."""
    for parameter, row in zip(parameters.values(), rows, strict=True):
        if row.kept != NONE:
            parameter.states = list(states[row.rank][row.kept])
        parameter.steps, parameter.pieces, parameter.runs = row.steps, row.pieces, row.runs
    return {name: parameter for name, parameter in parameters.items() if parameter.states}

"""Copies of a phase's state in the memory of two nodes, assembled into a checkpoint only when one is needed.

Each rank writes the file that it would write for a checkpoint and, next to it, the entries that it would send to rank 0. The
keeper of its node forwards both to the next node (`onediff.runs.copies`). Ranks do not wait for each other meanwhile: they
agree on what is copied with one number per copy.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from onediff.atomic import write_whole
from onediff.errors import UserError
from onediff.parallel.agreement import from_rank_zero, gathered, gathered_by_rank_zero, raise_on_all_ranks
from onediff.parallel.safetensors_writer import Entry, write_safetensors
from onediff.ranks import Ranks
from onediff.runs.copies import keep_only, mirror
from onediff.training.checkpoint.files import Files
from onediff.training.checkpoint.finite import Finite
from onediff.training.checkpoint.manifest import FILE, CheckpointManifest, StoredParameter
from onediff.training.checkpoint.save import (
    described_parameters,
    filled,
    hyper_parameters,
    persistent_buffers,
    rank_entries,
    share_of,
)
from onediff.training.checkpoint.table import RankTable, merged_row
from onediff.zero.process import pinned
from onediff.zero.protocol import ShardedEngine

log = logging.getLogger(__name__)
Json = dict[str, Any]
GENERATIONS, COPIES = 2, 2
"""Number of generations to keep, each on two nodes."""
ALIGNED = 16
WAIT_SECONDS, TELLING_SECONDS = 120.0, 1.0
"""Longest wait for a copy that is not finished when the next one is due, and the shortest wait worth a warning."""


class PeerCopies:
    """The copies that a phase makes every few steps.

    A rank keeps one more copy in host memory (pinned if there is a GPU), from which its file is written in the background.
    The device waits only for the copy to host memory.
    """

    def __init__(self, folder: Path, every: int, ranks: Ranks, last: Path | None) -> None:
        """`last` is the copy that the phase continues from. Collective."""
        self.folder, self.every, self.ranks = folder, every, ranks
        self.last = last.name if last is not None else None
        """The newest generation that every rank has on two nodes."""
        self.token = from_rank_zero(secrets.token_hex(4))
        self._begun: tuple[str, Future[None]] | None = None
        self._thread = ThreadPoolExecutor(1, "copies")
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._complained = self._gave_up = False

    def require_room(self, engine: ShardedEngine) -> None:
        """Raises UserError on every rank if a node's memory is too small for the copies. Collective."""
        own = sum(
            share_of(engine, part)[1] * part.values.itemsize * (3 if part.owner is not None else 1)
            for part in engine.shards()
        )
        needed = own * self.ranks.local_world * GENERATIONS * COPIES
        with raise_on_all_ranks():
            room = os.statvfs(self.folder)
            free = room.f_bavail * room.f_frsize
            if free < needed:
                where = f"{self.folder.parent} of {socket.gethostname()}"
                raise UserError(
                    f"training.peer_copies: {where} has {free / 1e9:.1f} GB free, and the copies take "
                    f"{needed / 1e9:.1f} GB; make it larger, or leave the setting out"
                )

    def due(self, step: int) -> bool:
        """Whether `step` is followed by a copy."""
        return step % self.every == 0

    def take(self, engine: ShardedEngine, step: int, extra: Json, own: Json, durable: Callable[[], None]) -> bool:
        """Begin a copy once the previous one has arrived on every rank; return whether it began.

        A restart therefore repeats at most twice `every` steps. The wait is bounded: training continues without a copy
        rather than stall. `extra` is rank 0's, `own` this rank's addition; `durable` is called before the copy counts.
        Collective: reduces one number.
        """
        if not self.arrived(WAIT_SECONDS):
            return False
        rank, world = self.ranks.rank, self.ranks.world
        generation, name = f"step-{step:08d}-{self.token}", f"rank-{rank:05d}-of-{world:05d}"
        keep = [generation, *([self.last] if self.last else [])]
        part: Json = {"step": step, "world": world, "tensor": engine.tensor_size, "context": engine.context_size}
        part |= {"stage": engine.stage, "own": own}
        if rank == 0:
            described = {key: value.to_json() for key, value in described_parameters(engine).items()}
            part |= {"extra": extra, "groups": hyper_parameters(engine), "parameters": described}
            part["buffers"] = [buffer for buffer, _ in persistent_buffers(engine)]
        finite = Finite()
        with engine.swap_in(changes=False) as swapped:
            entries, table = rank_entries(engine, swapped)
            entries = self._on_host([finite.noting(entry) for entry in entries], engine.device)
        if finite.first_fault() is not None:
            return False  # the other ranks make a generation that stays incomplete
        part |= {"rows": table.rows.tolist(), "states": table.states}

        def write() -> None:
            place = self.folder / generation
            keep_only(self.folder, keep)
            place.mkdir(mode=0o700, exist_ok=True)
            metadata = {"identity": generation, "step": str(step), "format": "onediff-checkpoint"}
            written = write_safetensors(place / f"{name}.safetensors", entries, metadata)
            durable()
            write_whole(place / f"{name}.json", json.dumps(part | {"written": written._asdict()}))
            mirror(self.folder, generation, [f"{name}.safetensors", f"{name}.json"], keep)

        self._begun = generation, self._thread.submit(write)
        return True

    def forget(self) -> None:
        """Removes all copies, because the phase rolls back to an earlier step. Collective."""
        if self._begun is not None:
            self._begun[1].exception()
        dist.barrier()
        self._begun = self.last = None
        self.token = from_rank_zero(secrets.token_hex(4))
        if self.ranks.local_rank == 0:
            keep_only(self.folder, ())

    def arrived(self, seconds: float = 0.0) -> bool:
        """Return whether every rank's last copy is on the next node, after waiting up to `seconds` for this rank's.

        Collective: reduces one number.
        """
        if self._begun is not None and seconds:
            began = time.monotonic()
            wait([self._begun[1]], seconds)
            if (waited := time.monotonic() - began) > TELLING_SECONDS and not self._complained:
                log.warning("training waited %.0f s for a copy; raise training.peer_copies.repeat_at_most", waited)
                self._complained = True
        fault = self._begun[1].exception() if self._begun is not None and self._begun[1].done() else None
        if fault is not None and not self._gave_up:
            log.warning("no more copies in memory until the next restart: %s", fault)
            self._gave_up = True
        arrived = torch.tensor(int(self._begun is None or (self._begun[1].done() and fault is None)))
        dist.all_reduce(arrived, op=dist.ReduceOp.MIN)
        if arrived and self._begun is not None:
            (self.last, _), self._begun = self._begun, None
        return bool(arrived)

    def _on_host(self, entries: Sequence[Entry], device: torch.device) -> list[Entry]:
        """The same entries with their current values, in this object's memory."""
        sizes = [prod(entry.shape) * entry.dtype.itemsize for entry in entries]
        ends = list(accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes))
        if ends and len(self._buffer) < ends[-1]:
            self._buffer = pinned(torch.empty(ends[-1], dtype=torch.uint8))
        copied = []
        for entry, begin, size in zip(entries, [0, *ends], sizes, strict=False):
            values = self._buffer[begin : begin + size].view(entry.dtype).view(tuple(entry.shape))
            values.copy_(entry.read().detach().view(tuple(entry.shape)), non_blocking=True)
            copied.append(entry._replace(read=partial(torch.Tensor.detach, values)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return copied


def newest_copy(folder: Path, ranks: Ranks, newer_than: int, join: Callable[[Json, list[Json]], Json]) -> Path | None:
    """The newest copy after step `newer_than` that is complete on the remaining nodes, as a checkpoint. Collective.

    `join` makes a checkpoint's `extra` from rank 0's and each rank's addition. Files on other nodes are fetched when read.
    """
    speaks = ranks.local_rank == 0
    held: dict[str, set[str]] = {}
    for found in gathered(_parts(folder) if speaks else {}):
        for generation, names in found.items():
            held.setdefault(generation, set()).update(names)
    whole = [generation for generation, names in held.items() if len(names) == _world(names)]
    whole = [generation for generation in whole if _step(generation) > newer_than]
    if not whole:
        return None
    path = folder / max(whole, key=_step)
    names = _parts(folder).get(path.name, []) if speaks else []
    everywhere = gathered_by_rank_zero({name: json.loads((path / name).read_text()) for name in names})
    with raise_on_all_ranks():
        parts = {name: part for node in everywhere for name, part in node.items()}
        text = _put_together(path.name, parts, join) if ranks.rank == 0 else ""
    text = str(from_rank_zero(text))
    with raise_on_all_ranks():
        if speaks:
            path.mkdir(mode=0o700, exist_ok=True)
            write_whole(path / FILE, text)
    return path


def _put_together(generation: str, parts: dict[str, Json], join: Callable[[Json, list[Json]], Json]) -> str:
    """Assembles the manifest of a generation, as text."""
    ordered = [parts[name] for name in sorted(parts)]
    files = [name.replace(".json", ".safetensors") for name in sorted(parts)]
    first = ordered[0]
    tables = [RankTable(np.array(p["rows"], dtype=np.int64), [tuple(s) for s in p["states"]]) for p in ordered]
    parameters = {name: StoredParameter(**values) for name, values in first["parameters"].items()}
    rows = np.stack([table.counted() for table in tables], axis=1)
    merged = [merged_row(one, files) for one in rows]
    manifest = CheckpointManifest(
        identity=generation,
        step=first["step"],
        world=first["world"],
        tensor=first["tensor"],
        context=first["context"],
        zero_stage=first["stage"],
        extra=join(first["extra"], [part["own"] for part in ordered]),
        groups=first["groups"],
        parameters=filled(parameters, merged, [table.states for table in tables]),
        buffers=first["buffers"],
        files=Files.of_json({file: part["written"] for file, part in zip(files, ordered, strict=True)}),
    )
    return json.dumps(manifest.to_json(), separators=(",", ":"))


def _parts(folder: Path) -> dict[str, list[str]]:
    """The parts of each generation on this node."""
    found = {}
    for generation in folder.glob("step-*"):
        names = [path.name for path in generation.glob("rank-*.json") if path.with_suffix(".safetensors").exists()]
        found[generation.name] = sorted(names)
    return found


def _world(names: Iterable[str]) -> int:
    """Number of ranks that wrote a generation, from names such as `rank-00001-of-00004.json`."""
    return max((int(name.removesuffix(".json").rpartition("-")[2]) for name in names), default=-1)


def _step(generation: str) -> int:
    """The step of a generation: 12 for `step-00000012-1a2b3c4d`."""
    return int(generation.split("-")[1])

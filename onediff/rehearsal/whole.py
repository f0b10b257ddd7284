"""The rehearsal of a run: one rank and its peers, each in its own process, and what they found. Torch-free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from onediff.config.run import RunConfig
from onediff.errors import UserError
from onediff.plan.architecture import sizes_of
from onediff.rehearsal.compare import disagreement
from onediff.rehearsal.role import Played, Role

MANY, FEW = 16, 2
"""To compare peers, a language model with more than `MANY` layers is reduced to `FEW` (`shallow`): its layers are alike."""
WHOLE, BESIDE = "whole", "beside"
"""The rank itself, and the same rank with `FEW` layers."""


@dataclass
class Rehearsal:
    """The findings on one rank, and from comparing it with its peers."""

    rank: int
    world: int
    phases: list[Played]
    peers: dict[str, int]
    """`data`: a rank with other rows, of text only; `tensor`, `context`: a rank of the same group."""
    compared_layers: int | None = None
    """Number of language model layers with which peers were compared, with the tower and delta module reduced likewise;
    None for all."""
    findings: list[str] = field(default_factory=list)

    @property
    def as_json(self) -> dict[str, object]:
        """Everything, for JSON."""
        return asdict(self)


def place(text: str) -> tuple[int, int]:
    """Parses `RANK/WORLD`. Raises UserError."""
    rank, _, world = text.partition("/")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"--rehearse {text}: write RANK/WORLD with a rank below the number of ranks, such as 0/64")
    return int(rank), int(world)


def rehearse(
    config: RunConfig, named: str, overrides: Sequence[str], rank: int, world: int, per_node: int
) -> Rehearsal:
    """Rehearses `rank` of `world`. `config` was composed from `named` and `overrides`. Takes minutes for large models.

    Raises UserError if a process fails before it can report its findings.
    """
    peers = peers_of(rank, world, config.parallel.tensor, config.parallel.context)
    layers = FEW if peers and sizes_of(config.model).decoder.layers > MANY else None
    # The longest jobs start first: the rank itself, whose phases are independent of each other.
    alone = [None] if layers is None else [(name,) for name in reversed(config.phases)]
    jobs: list[tuple[str, int, int | None, tuple[str, ...] | None]]
    jobs = [(WHOLE, rank, None, phases) for phases in alone]
    if layers is not None:
        jobs.append((BESIDE, rank, layers, None))
    jobs += [(kind, one, layers, None) for kind, one in peers.items()]
    with tempfile.TemporaryDirectory() as scratch:
        roles = [
            Role(named, list(overrides), one, world, per_node, kind == "data", f"{scratch}/{number}.json", few, phases)
            for number, (kind, one, few, phases) in enumerate(jobs)
        ]
        done = list(zip(jobs, _play(roles), strict=True))
    played = {kind: phases for (kind, *_), phases in done}
    order = list(config.phases)
    played[WHOLE] = [phase for (kind, *_), phases in done if kind == WHOLE for phase in phases]
    played[WHOLE].sort(key=lambda phase: order.index(phase.name))
    made = Rehearsal(rank, world, played[WHOLE], peers, layers)
    beside = played.get(BESIDE, played[WHOLE])
    for number, phase in enumerate(made.phases):
        ranks = {WHOLE: rank, BESIDE: rank} | peers
        faults = [(ranks[kind], some[number].fault) for kind, some in played.items() if some[number].fault is not None]
        findings = [f"phase {phase.name}: rank {one}: {fault}" for one, fault in faults[:1]]
        if not faults:
            found = (
                disagreement(beside[number], played[kind][number], (rank, one), same_rows=kind != "data")
                for kind, one in peers.items()
            )
            findings = [line for line in found if line is not None]
        made.findings += findings
    return made


def peers_of(rank: int, world: int, tensor: int, context: int = 1) -> dict[str, int]:
    """The next rank with other rows, and the next ranks of the same tensor and context groups, if they exist."""
    size = tensor * context
    peers = {"data": (rank + size) % world} if world > size else {}
    if tensor > 1:
        peers["tensor"] = rank - rank % tensor + (rank + 1) % tensor
    if context > 1:
        peers["context"] = rank - rank % size + (rank + tensor) % size
    return peers


def _play(roles: list[Role]) -> list[list[Played]]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "onediff.rehearsal.forks", json.dumps([asdict(role) for role in roles])]
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"--rehearse: {last}")
    results = [json.loads(Path(role.out).read_text(encoding="utf-8")) for role in roles]
    return [[Played.of(values) for values in phases] for phases in results]

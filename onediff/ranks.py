"""Determines the rank of this process from environment variables, for every launcher."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from onediff.errors import UserError

FIRST_PORT, PORTS = 10_000, 20_000  # below Linux's ephemeral range, which starts at 32768


@dataclass(frozen=True)
class Ranks:
    """One process of `world`: its global `rank`, its `local_rank` on this node, and the number of ranks on this node."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    local_world: int = 1
    master_addr: str = "127.0.0.1"
    """The host of rank 0, for the rendezvous."""
    master_port: int = 0
    """The port of the rendezvous; 0 for a single process."""

    @property
    def alone(self) -> bool:
        """Whether this is the only process, started by a shell, a batch script or a step with one task."""
        return self.world == 1

    def variables(self) -> dict[str, str]:
        """The variables of torchrun, which torch, DeepSpeed and Megatron read with any launcher."""
        named = {"RANK": self.rank, "LOCAL_RANK": self.local_rank, "WORLD_SIZE": self.world}
        named["LOCAL_WORLD_SIZE"] = self.local_world
        meeting = {"MASTER_ADDR": self.master_addr, "MASTER_PORT": str(self.master_port)} if self.master_port else {}
        return {name: str(value) for name, value in named.items()} | meeting

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """The rank of this process, from `environ`, by the first of these rules that applies:

        1. RANK and WORLD_SIZE: torchrun, DeepSpeed's launcher, `onediff train --processes`, `onediff launch`.
        2. OMPI_COMM_WORLD_SIZE: mpirun of Open MPI; PMI_SIZE with MPI_LOCALRANKID: mpirun of MPICH and Intel MPI. Under
           Slurm these start helpers with srun, so their ranks also have the variables of a helper's step.
        3. SLURM_STEP_NUM_TASKS: a task started by srun. SLURM_PROCID=0 and SLURM_NTASKS do not count, because batch scripts
           and shells of salloc also have them, but are not ranks.
        4. Otherwise, a single process.

        Raises UserError if the variables are incomplete or contradictory.
        """
        if "RANK" in environ or "WORLD_SIZE" in environ:
            ranks = _from_launcher(environ)
        elif "OMPI_COMM_WORLD_SIZE" in environ:
            ranks = _from_mpi(environ, "OMPI_COMM_WORLD_{}", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
        elif "PMI_SIZE" in environ and "MPI_LOCALRANKID" in environ:
            ranks = _from_mpi(environ, "PMI_{}", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
        elif "SLURM_STEP_NUM_TASKS" in environ:
            ranks = _from_slurm(environ)
        else:
            return cls()
        for name, value, count in (
            ("rank", ranks.rank, ranks.world),
            ("local rank", ranks.local_rank, ranks.local_world),
        ):
            if not 0 <= value < count:
                raise UserError(f"environment: {name} {value} is not below the number of ranks, {count}")
        return ranks


def own_place(processes: int | None) -> Ranks:
    """The rank of this process, which is to start `processes` ranks (None for none).

    Raises UserError if it is to start ranks but is already one of several ranks.
    """
    ranks = Ranks.from_environment()
    if processes is not None and not ranks.alone:
        raise UserError(
            f"--processes: this process is already rank {ranks.rank} of {ranks.world}; omit it under srun, torchrun or "
            "mpirun, and start a shell that is to start ranks with `srun --pty -n 1`"
        )
    return ranks


def _from_launcher(environ: Mapping[str, str]) -> Ranks:
    rank, world = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    alone = world == 1
    return Ranks(
        rank,
        _number(environ, "LOCAL_RANK", rank),
        world,
        # DeepSpeed's launcher names it LOCAL_SIZE.
        _number(environ, "LOCAL_WORLD_SIZE", _number(environ, "LOCAL_SIZE", world)),
        environ.get("MASTER_ADDR", "127.0.0.1") if alone else _text(environ, "MASTER_ADDR"),
        _number(environ, "MASTER_PORT", 0 if alone else None),
    )


def _from_mpi(environ: Mapping[str, str], name: str, local_rank: str, local_size: str) -> Ranks:
    world = _number(environ, world_name := name.format("SIZE"))
    if world == 1:
        return Ranks()
    for needed in ("MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(needed):
            raise UserError(
                f"environment: {needed} is not set, but {world_name}={world} ranks need a rendezvous; pass mpirun "
                "MASTER_ADDR, the host of rank 0, and a free MASTER_PORT (Open MPI: -x NAME=VALUE, others: -genv NAME VALUE)"
            )
    return Ranks(
        _number(environ, name.format("RANK")),
        _number(environ, local_rank),
        world,
        _number(environ, local_size),
        _text(environ, "MASTER_ADDR"),
        _number(environ, "MASTER_PORT"),
    )


def _from_slurm(environ: Mapping[str, str]) -> Ranks:
    node = _number(environ, "SLURM_NODEID")
    per_node = tasks_per_node(_text(environ, "SLURM_STEP_TASKS_PER_NODE"))
    nodes = environ.get("SLURM_STEP_NODELIST") or _text(environ, "SLURM_JOB_NODELIST")
    if node >= len(per_node):
        raise UserError(f"environment: SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE names {len(per_node)} nodes")
    _text(environ, "SLURM_JOB_ID")
    return Ranks(
        _number(environ, "SLURM_PROCID"),
        _number(environ, "SLURM_LOCALID"),
        _number(environ, "SLURM_STEP_NUM_TASKS"),
        per_node[node],
        environ.get("MASTER_ADDR") or expand_nodes(nodes)[0],
        _number(environ, "MASTER_PORT", _port(environ)),
    )


def _port(environ: Mapping[str, str]) -> int:
    """A port that all ranks compute without communication, different for each job, step and restart."""
    job, step, restart = (
        _number(environ, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    return FIRST_PORT + (job * 31 + step * 7 + restart) % PORTS


def tasks_per_node(text: str) -> list[int]:
    """`"2(x3),1"` as `[2, 2, 2, 1]`."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise UserError(f"environment: SLURM_STEP_TASKS_PER_NODE={text!r} is not a list of task counts")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def expand_nodes(text: str) -> list[str]:
    """Expands a Slurm host list in order: `"a[1-2,07],b"` is `["a1", "a2", "a07", "b"]`.

    Several brackets in one name multiply, the first varying slowest. Raises UserError for an invalid list.
    """
    hosts: list[str] = []
    for word in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", word):
            endings = _span(ranges, text) if ranges else [plain]
            names = [name + ending for name in names for ending in endings]
        hosts += names
    if not hosts or text.count("[") != text.count("]"):
        raise UserError(f"environment: node list {text!r} cannot be read")
    return hosts


def _span(ranges: str, text: str) -> list[str]:
    """`"1-2,07"` as `["1", "2", "07"]`; the first number of a range sets the zero-padded width."""
    numbers: list[str] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            raise UserError(f"environment: node list {text!r} cannot be read")
        first, last = match[1], match[2] or match[1]
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise UserError(f"environment: {name} is not set, but other variables of its launcher are; set all or none")
    return value


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name)
    if value is None and default is not None:
        return default
    value = _text(environ, name)
    if not value.isdecimal():
        raise UserError(f"environment: {name}={value!r} is not a whole number")
    return int(value)

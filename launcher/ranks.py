"""Who am I among the ranks: the variables of torchrun-like launchers, or Slurm's own, or one process alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from onediff.errors import UserError

FIRST_PORT, PORTS = 10_000, 20_000  # below Linux's ephemeral range, which begins at 32768


class Ranks(NamedTuple):
    """The place of this process in its job."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node: int
    master_addr: str
    master_port: int
    job: str | None
    """Slurm's job id, None outside Slurm."""


def rank_environment(environ: Mapping[str, str]) -> Ranks:
    """The place of this process, read from `environ`.

    RANK, WORLD_SIZE, … win (torchrun, `onediff train --processes`); else a task that `srun` started is placed by Slurm's
    variables; else the process is alone. Raises UserError when what is set is incomplete or contradicts itself.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        ranks = _from_launcher(environ)
    elif "SLURM_STEP_NUM_TASKS" in environ:
        # Only srun sets this one: a batch script has SLURM_PROCID=0 and SLURM_NTASKS too, and is no rank.
        ranks = _from_slurm(environ)
    else:
        return Ranks(0, 0, 1, 1, 0, "127.0.0.1", 0, environ.get("SLURM_JOB_ID"))
    for name, value, count in (
        ("rank", ranks.rank, ranks.world_size),
        ("local rank", ranks.local_rank, ranks.local_world_size),
    ):
        if not 0 <= value < count:
            raise UserError(f"environment: {name} {value} is not below the number of ranks, {count}")
    return ranks


def _from_launcher(environ: Mapping[str, str]) -> Ranks:
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    alone = world_size == 1
    local_rank = _number(environ, "LOCAL_RANK", rank)
    local_world_size = _number(environ, "LOCAL_WORLD_SIZE", world_size)
    return Ranks(
        rank,
        local_rank,
        world_size,
        local_world_size,
        _number(environ, "GROUP_RANK", rank // max(1, local_world_size)),
        environ.get("MASTER_ADDR", "127.0.0.1") if alone else _text(environ, "MASTER_ADDR"),
        _number(environ, "MASTER_PORT", 0 if alone else None),
        environ.get("SLURM_JOB_ID"),
    )


def _from_slurm(environ: Mapping[str, str]) -> Ranks:
    node = _number(environ, "SLURM_NODEID")
    per_node = tasks_per_node(_text(environ, "SLURM_STEP_TASKS_PER_NODE"))
    nodes = environ.get("SLURM_STEP_NODELIST") or _text(environ, "SLURM_JOB_NODELIST")
    if node >= len(per_node):
        raise UserError(f"environment: SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE names {len(per_node)} nodes")
    return Ranks(
        _number(environ, "SLURM_PROCID"),
        _number(environ, "SLURM_LOCALID"),
        _number(environ, "SLURM_STEP_NUM_TASKS"),
        per_node[node],
        node,
        environ.get("MASTER_ADDR") or expand_nodes(nodes)[0],
        _number(environ, "MASTER_PORT", _port(environ)),
        _text(environ, "SLURM_JOB_ID"),
    )


def _port(environ: Mapping[str, str]) -> int:
    """The same port on every rank, without talking: another one for each job, step and restart."""
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
    """The hosts of Slurm's short list, in its order: `"a[1-2,07],b"` is `["a1", "a2", "a07", "b"]`.

    Several brackets in one name multiply, the first slowest. Raises UserError for a list that does not read so.
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
    """`"1-2,07"` as `["1", "2", "07"]`: leading zeros of the first number are the width of the range."""
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

"""Find the ranks that did not reach a collective, from the flight records that NCCL's watchdog writes on a timeout.

Standard library only.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

PREFIX = "nccl_trace_rank_"
"""File name prefix of the ranks' records in `<run>/logs`."""


class _PlainData(pickle.Unpickler):
    """Unpickles dictionaries, lists, text and numbers only; a record holds nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a flight record")


class Reached(NamedTuple):
    """How far a rank got in one process group."""

    latest: int
    """Number of the last collective it started."""
    names: Mapping[int, str]
    """Names of its collectives by number, such as `nccl:all_reduce`."""


def read_record(path: Path) -> dict[str, Reached]:
    """How far a rank got in each of its groups, by group name. Raises OSError, or ValueError if it is not a record."""
    try:
        found = _PlainData(io.BytesIO(path.read_bytes())).load()
        groups: dict[str, dict[int, str]] = {}
        for entry in found["entries"]:
            if not entry["is_p2p"]:
                name = entry["process_group"][1] or entry["process_group"][0]
                groups.setdefault(name, {})[entry["collective_seq_id"]] = entry["profiling_name"]
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: not a flight record: {error}") from None
    return {name: Reached(max(names), names) for name, names in groups.items()}


def missing(logs: Path) -> list[str]:
    """One line for each group whose ranks reached different collectives; empty without records."""
    ranks: dict[int, dict[str, Reached]] = {}
    for path in logs.glob(f"{PREFIX}*"):
        try:
            ranks[int(path.name.removeprefix(PREFIX))] = read_record(path)
        except (OSError, ValueError):
            continue  # the rank was killed while writing it
    lines = []
    for group in sorted({name for groups in ranks.values() for name in groups}):
        reached = {rank: groups[group] for rank, groups in sorted(ranks.items()) if group in groups}
        least = min(one.latest for one in reached.values())
        behind = [rank for rank, one in reached.items() if one.latest == least]
        if len(behind) == len(reached):
            continue
        wanted = Counter(one.names.get(least + 1) for one in reached.values() if one.latest > least)
        name = (wanted.most_common(1)[0][0] or "a collective").rpartition(":")[2]
        others = f"{len(reached) - len(behind)} other ranks" if len(reached) - len(behind) > 1 else "the other rank"
        who = f"rank{'s' * (len(behind) > 1)} {', '.join(map(str, behind[:8]))}{' …' * (len(behind) > 8)}"
        lines.append(f"group {group}: {who} did not reach {name} number {least + 1}, where {others} waited")
    return lines

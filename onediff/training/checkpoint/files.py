"""The files of a checkpoint, one per rank, with sizes and checksums in columns, since there may be thousands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from onediff.parallel.safetensors_writer import Written

DIGITS = 64
"""Bytes of a SHA-256."""


def file_of(rank: int, world: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}-of-{world:05d}.safetensors"


def stamp(written: Written) -> bytes:
    """Size and checksum of a file in 40 bytes."""
    return written.bytes.to_bytes(8, "little") + bytes.fromhex(written.sha256)


class Files(Mapping[str, Written]):
    """Size and checksum of each file by its name, in the order of ranks."""

    def __init__(self, sizes: Sequence[int], sums: str, names: Sequence[str] | None = None) -> None:
        """`sums` holds all checksums concatenated; `names` defaults to the ranks' names."""
        self.sizes, self.sums = list(sizes), sums
        self.ranked = names is None
        self._named = names

    @classmethod
    def of_stamps(cls, stamps: bytes) -> Files:
        """From the concatenated stamps of all ranks."""
        rows = np.frombuffer(stamps, dtype=np.uint8).reshape(-1, 40)
        sizes = np.ascontiguousarray(rows[:, :8]).view("<i8")[:, 0].tolist()
        return cls(sizes, rows[:, 8:].tobytes().hex())

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Files:
        """From the result of `to_json`. Raises TypeError or KeyError for anything else."""
        if "sha256" in content:
            return cls(content["bytes"], content["sha256"])
        records = content.values()
        return cls([one["bytes"] for one in records], "".join(one["sha256"] for one in records), list(content))

    def to_json(self, columns: bool) -> dict[str, Any]:
        """One record per file or, with `columns`, two columns, for which the files must have the ranks' names."""
        if columns:
            assert self.ranked
            return {"bytes": self.sizes, "sha256": self.sums}
        return {name: self[name]._asdict() for name in self.names}

    @cached_property
    def names(self) -> list[str]:
        world = len(self.sizes)
        return [file_of(rank, world) for rank in range(world)] if self._named is None else list(self._named)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def __getitem__(self, name: str) -> Written:
        number = self._numbers[name]
        return Written(self.sizes[number], self.sums[DIGITS * number : DIGITS * (number + 1)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.sizes)

"""Batches for a tensor-parallel group: its first rank reads and decodes, the others receive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from onediff.errors import UserError
from onediff.parallel.topology import Topology


class SharedBatches:
    """A loader that runs on the first rank of each tensor group and gives its micro-batches to all of the group."""

    def __init__(self, loader: Any, topology: Topology) -> None:
        self.loader = loader
        self.topology = topology
        self.draws: dict[int, Any] = dict(loader.draws)
        """how far each lane of this rank's share has been read, behind the last batch"""
        self.skipped: Counter[str] = Counter()
        """samples left out so far, by kind of fault"""
        self.cut: Counter[str] = Counter()
        """answers cut so far, by data set"""

    def __iter__(self) -> Iterator[Any]:
        """Yields what the loader yields. Collective over the group; a UserError of the loader is raised on all of it."""
        batches = iter(self.loader) if self.topology.tp_rank == 0 else None
        while True:
            made: Any = None
            if batches is not None:
                try:
                    batch, loader = next(batches), self.loader
                    made = batch, dict(loader.draws), Counter(loader.skipped), Counter(loader.cut)
                except UserError as error:
                    made = str(error)
            made = self.topology.from_tensor_rank_zero(made)
            if isinstance(made, str):
                raise UserError(made)
            batch, self.draws, self.skipped, self.cut = made
            yield batch

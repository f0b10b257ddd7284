"""Fixed workloads that measure a GPU and its node on their own: a matrix product, memory, the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from onediff.ranks import Ranks
from onediff.training.metrics import Moment

PRODUCT = 4096
"""Side of the multiplied matrices. One of them, 32 MiB, is also sent over the network."""
TOUCHED = 1 << 27
"""Bytes read and written to measure memory: more than any cache holds."""
TRIES = 3
LEAST_NODES = 4
"""Fewer nodes than this: the times between them do not tell which end is slow."""
PRODUCT_TIME, MEMORY, NETWORK = "matrix product", "memory", "network"


class Probes:
    """The probes of one rank. They hold 192 MiB of the device's memory."""

    def __init__(self, device: torch.device, ranks: Ranks, side: int = PRODUCT, touched: int = TOUCHED) -> None:
        self.device, self.ranks = device, ranks
        self.factor = torch.ones(side, side, device=device, dtype=torch.bfloat16)
        self.product = torch.empty_like(self.factor)
        self.memory = torch.zeros(touched // 2, device=device, dtype=torch.bfloat16)

    def seconds(self) -> dict[str, float]:
        """Return the shortest time of each probe in three tries. Collective if the run has four nodes or more."""
        found = {PRODUCT_TIME: self.shortest(self.multiply), MEMORY: self.shortest(self.touch)}
        if self.ranks.world // self.ranks.local_world >= LEAST_NODES:
            # A slow node slows both of its links, to the next node and to the one after; a healthy node has a fast link.
            found[NETWORK] = min(self.shortest(partial(self.exchange, nodes)) for nodes in (1, 2))
        return found

    def multiply(self) -> None:
        """Multiply two matrices."""
        torch.mm(self.factor, self.factor, out=self.product)

    def touch(self) -> None:
        """Read and write a block of memory."""
        self.memory.add_(1)

    def exchange(self, nodes: int) -> None:
        """Send a matrix to the same GPU `nodes` nodes ahead, and receive one from `nodes` nodes behind."""
        away = nodes * self.ranks.local_world
        to, source = ((self.ranks.rank + step) % self.ranks.world for step in (away, -away))
        pair = [dist.P2POp(dist.isend, self.factor, to), dist.P2POp(dist.irecv, self.product, source)]
        for request in dist.batch_isend_irecv(pair):
            request.wait()

    def shortest(self, work: Callable[[], None]) -> float:
        """Return the seconds that `work` takes, the shortest of three tries. Waits for the device."""
        return min(self.timed(work) for _ in range(TRIES))

    def timed(self, work: Callable[[], None]) -> float:
        before = Moment(self.device)
        work()
        return before.seconds_until(Moment(self.device))


def slowness(probes: Sequence[Mapping[str, float]]) -> list[tuple[float, str]]:
    """Return, for each rank, the name of its worst probe and the factor by which it is slower there than the median."""
    medians = {name: float(np.median([probe[name] for probe in probes])) for name in probes[0]}
    return [max((probe[name] / median, name) for name, median in medians.items()) for probe in probes]

"""Many small kernels launched as one: what a step of generation costs the host is then paid once a batch.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from onediff.parallel.block import block_of
from onediff.ranks import Ranks
from onediff.zero.parameters import is_sharded

log = logging.getLogger(__name__)
Step = Callable[[], None]


class CudaGraphs:
    """Recording of one model's generation, and what became of it."""

    def __init__(self) -> None:
        self.used = False
        """whether a step has been recorded since the model was made"""
        self._told: set[str] = set()

    def unless(self, obstacle: str | None) -> Callable[[Step], Step] | None:
        """What records a step; None if there is an obstacle, which rank 0 says once."""
        if obstacle is None:
            return self._record
        if obstacle not in self._told and Ranks.from_environment().rank == 0:
            log.warning("captions are generated without CUDA graphs: %s", obstacle)
        self._told.add(obstacle)
        return None

    def _record(self, step: Step) -> Step:
        self.used = True
        return recorded(step)


def not_recordable(model: Any) -> str | None:
    """Why a step of this model is not kernels of one GPU alone, in words; None if it is."""
    parameters = list(model.parameters())
    if any(is_sharded(p) for p in parameters):
        return "ZeRO stage 3 gathers the weights of each step"
    if not all(block_of(p).is_whole for p in parameters):
        return "the model is cut over several ranks"
    return None if all(p.is_cuda for p in parameters) else "the model is not on a GPU"


def recorded(step: Step) -> Step:
    """Does what `step` does, with one launch. Recording waits for the device and does not do the work.

    `step` must have run before, wait for nothing, and read and write the same memory every time; the graph holds on to it.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay

"""Records a step of generation as a CUDA graph, which launches its many small kernels at once.

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
    """Records CUDA graphs for the generation of one model."""

    def __init__(self) -> None:
        self.used = False
        """Whether any step has been recorded."""
        self._logged: set[str] = set()

    def unless(self, obstacle: str | None) -> Callable[[Step], Step] | None:
        """The function that records a step, or None if there is an obstacle, which rank 0 logs once."""
        if obstacle is None:
            return self._record
        if obstacle not in self._logged and Ranks.from_environment().rank == 0:
            log.warning("generating captions without CUDA graphs: %s", obstacle)
        self._logged.add(obstacle)
        return None

    def _record(self, step: Step) -> Step:
        self.used = True
        return recorded(step)


def not_recordable(model: Any) -> str | None:
    """Why a step of this model cannot be recorded, or None if it runs entirely on one GPU."""
    parameters = list(model.parameters())
    if any(is_sharded(p) for p in parameters):
        return "ZeRO stage 3 gathers the weights of each step"
    if not all(block_of(p).is_whole for p in parameters):
        return "the model is split over several ranks"
    return None if all(p.is_cuda for p in parameters) else "the model is not on a GPU"


def recorded(step: Step) -> Step:
    """Records `step`, without running it; returns a function that runs it with a single launch.

    `step` must have run before, must not synchronise, and must use the same memory every time. The graph keeps that memory
    alive. Recording synchronises with the device.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay

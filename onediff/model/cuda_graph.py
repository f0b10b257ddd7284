"""Many small kernels launched as one: what a step of generation costs the host is then paid once a batch.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onediff.parallel.block import block_of


def can_record(model: Any) -> bool:
    """Whether a step of this model is kernels of one GPU alone: weights there, whole, and not gathered by ZeRO-3."""
    parameters = list(model.parameters())
    return all(p.is_cuda and not hasattr(p, "ds_id") and block_of(p).is_whole for p in parameters)


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """Does what `step` does, with one launch. Recording waits for the device and does not do the work.

    `step` must have run before, wait for nothing, and read and write the same memory every time; the graph holds on to it.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay

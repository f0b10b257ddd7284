"""Frees a DeepSpeed engine, so that the next phase has its memory and torch's own functions."""

from __future__ import annotations

from typing import Any

import torch

from onediff.zero import node_copy


def release(engine: Any) -> None:
    """Clears the references to a DeepSpeed engine: once its owner drops it, a garbage collection frees everything.

    DeepSpeed 0.19 keeps every ZeRO-3 model in a list of modules, which the forward passes of the next one would search,
    and in a cache of its coordinators' answers; both are global to the process. It also leaves `torch.nn.functional.linear`
    replaced by a version written in Python, which costs the demo's model a tenth of each pass.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    node_copy.end()
    modules = parameter_offload.FWD_MODULE_STACK
    modules[:] = [module for module in modules if module is not engine.module]
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    # A wrapper has the cached function in its closure.
    for cell in cached.__closure__:
        cell.cell_contents.cache_clear()
    replaced = InsertPostInitMethodToModuleSubClasses
    torch.nn.functional.linear = getattr(replaced, "linear_bk", torch.nn.functional.linear)

"""Frees a DeepSpeed engine, so that the next phase has all memory and torch's original functions."""

from __future__ import annotations

from typing import Any

import torch

from onediff.zero import node_copy


def release(engine: Any) -> None:
    """Clears global references to a DeepSpeed engine, so that it is freed when its owner drops it.

    DeepSpeed 0.19 keeps every ZeRO-3 model in a global list of modules, which the next model's forward passes would search,
    and in a global cache of its coordinators. It also leaves `torch.nn.functional.linear` replaced by a Python version,
    which costs the demo's model a tenth of each pass.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    node_copy.end()
    modules = parameter_offload.FWD_MODULE_STACK
    modules[:] = [module for module in modules if module is not engine.module]
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    # The cached function is in the closure of a wrapper.
    for cell in cached.__closure__:
        cell.cell_contents.cache_clear()
    replaced = InsertPostInitMethodToModuleSubClasses
    torch.nn.functional.linear = getattr(replaced, "linear_bk", torch.nn.functional.linear)

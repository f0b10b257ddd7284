"""Letting go of a DeepSpeed engine, so that the next phase has the memory."""

from __future__ import annotations

from typing import Any


def release(engine: Any) -> None:
    """Cuts what holds a DeepSpeed engine: once its owner forgets it, a garbage collection frees all that it had.

    DeepSpeed 0.19 keeps every ZeRO-3 model in a list of modules, which the forward passes of the next one would look
    through, and in a cache of its coordinators' answers; both are of the whole process.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    modules = parameter_offload.FWD_MODULE_STACK
    modules[:] = [module for module in modules if module is not engine.module]
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    # Around the cached function is another, which has it in its closure.
    for cell in cached.__closure__:
        cell.cell_contents.cache_clear()

"""Finds the micro-batches of a step whose gradients are not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onediff.data.batch import Batch
from onediff.training.engine import Engine


def not_finite(engine: Engine, micro_batches: list[Batch], step: int, steps: int) -> list[bool]:
    """For each of this rank's micro-batches of a step, whether its loss or any gradient of its own is not finite.

    Repeats the step and checks each gradient before it is reduced. For a run that is about to stop. Collective.
    """
    finite = torch.ones(len(micro_batches), dtype=torch.bool, device=engine.device)
    now = -1  # the micro-batch being computed

    def begin(module: Any, taken: Any) -> None:
        nonlocal now
        now += 1

    def look(numbers: Tensor) -> None:
        finite[now] &= numbers.isfinite().all()

    model = engine.model
    hooks = [
        model.register_forward_pre_hook(begin),
        model.register_forward_hook(lambda module, taken, made: look(made)),
    ]
    hooks += [parameter.register_hook(look) for parameter in model.parameters() if parameter.requires_grad]
    try:
        engine.step(micro_batches, step, steps)
    finally:
        for hook in hooks:
            hook.remove()
    return [not good for good in finite.tolist()]

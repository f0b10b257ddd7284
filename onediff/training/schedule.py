"""The learning rate as a function of the step: no state to save, nothing to drift on resuming."""

from __future__ import annotations

import math

from onediff.config.training import OptimizerConfig


def rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` (0 is the first) of `steps`.

    Rises linearly over the warm-up, then falls from 1 to `final_lr` by the schedule; the last step still learns.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    shape = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.final_lr + (1 - config.final_lr) * shape

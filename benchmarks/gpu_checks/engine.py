"""An engine on one rank with a batch of a given shape, as `benchmarks/plan.py` makes them."""

from __future__ import annotations

from typing import Any

import torch
from gpu_parts.models import Size, model_config
from plan import batch_of

from onediff.config.run import RunConfig
from onediff.parallel.topology import Topology
from onediff.plan.walk import Shape
from onediff.training.engine import Engine
from onediff.training.start import built


def run_config(size: Size, dry: bool, stage: int) -> RunConfig:
    """A run of one phase on one rank, with two micro-batches per step."""
    phase = {"mix": {"pairs": 1}, "train": size.trains, "steps": 100}
    phase |= {"global_batch": 2 * size.pairs, "micro_batch": size.pairs}
    return RunConfig.model_validate(
        {
            "name": "check",
            "model": model_config(size, dry).model_dump(),
            "data": {"sets": {"pairs": "."}},
            "training": {"precision": "bf16", "activation_checkpointing": size.checkpointing},
            "phases": {"check": phase},
            "parallel": {"zero_stage": stage},
        }
    )


def shape_of(size: Size, dry: bool) -> Shape:
    """Every row is a pair with some text; a third of the text is the target."""
    config = model_config(size, dry)
    seats = 2 * (config.vision.image.size // config.vision.config["patch_size"]) ** 2 + config.delta.tokens  # type: ignore[index]
    text = 16 if dry else 256
    return Shape(size.pairs, seats + text, 2 * size.pairs, size.pairs, size.pairs * (text // 3))


def start(config: RunConfig, topology: Topology, shape: Shape) -> tuple[Engine, Any]:
    """The engine and a batch in pinned memory."""
    model = built(config, config.model, "check", topology, filled_later=False)
    tokens = model.vision.tokens
    engine = Engine(model, config, config.phases["check"], topology)
    batch = batch_of(config, shape, tokens)
    if torch.cuda.is_available():
        from onediff.data.segments import each_tensor

        batch = each_tensor(batch, lambda tensor: tensor.pin_memory())
    return engine, batch

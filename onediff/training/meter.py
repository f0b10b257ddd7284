"""How much of the device's arithmetic a step used."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from onediff.config.tree import RunConfig
from onediff.data.batch import Batch
from onediff.errors import UserError
from onediff.plan.architecture import sizes_of
from onediff.plan.flops import StepCost
from onediff.plan.gpus import gpu_of_device
from onediff.plan.walk import Shape
from onediff.training.config import PhaseConfig

log = logging.getLogger(__name__)


class Meter:
    """Achieved FLOP/s of this rank: the model's FLOPs, forward and backward once, of the shapes that it computed.

    Costs some microseconds a step, and asks the device nothing.
    """

    def __init__(self, config: RunConfig, phase: PhaseConfig) -> None:
        self.cost: StepCost | None = None
        try:
            self.cost = StepCost.of_phase(sizes_of(config.model), phase.train, config.parallel.tensor)
        except UserError as error:
            log.warning("no FLOP/s: %s", error)
        gpu = gpu_of_device(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.peak_tflops = gpu.tflops if gpu and config.training.precision == "bf16" else None

    def rates(self, micro_batches: Sequence[Batch], seconds: float) -> dict[str, float]:
        """`tflops_per_rank` of a step over these micro-batches (on the host), and `mfu` where the peak is known."""
        if self.cost is None:
            return {}
        tflops = sum(self.cost.flops(shape_of(batch)) for batch in micro_batches) / seconds / 1e12
        return {"tflops_per_rank": tflops} | ({"mfu": tflops / self.peak_tflops} if self.peak_tflops else {})


def shape_of(batch: Batch) -> Shape:
    """The size of a batch that lies in the memory of the host."""
    rows, tokens = batch.token_ids.shape
    scores = None
    if batch.segment_ids is not None:
        # A sample of a packed row looks at itself only.
        places = torch.arange(rows)[:, None] * (tokens + 1) + batch.segment_ids
        lengths = torch.bincount(places[batch.segment_ids > 0])
        scores = int((lengths**2).sum())
    return Shape(rows, tokens, len(batch.pictures), batch.pairs, batch.targets, scores)

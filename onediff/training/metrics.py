"""Timing, metrics and FLOPs of a step, without waiting for the device until they are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onediff.config.model import ModelConfig
from onediff.config.training import PhaseConfig
from onediff.data.batch import Batch
from onediff.errors import UserError
from onediff.plan.architecture import sizes_of
from onediff.plan.flops import StepCost
from onediff.plan.gpus import gpu_of_device
from onediff.plan.walk import Shape, Trained

log = logging.getLogger(__name__)


class Moment:
    """A moment in the device's own time: when all work submitted so far is done."""

    def __init__(self, device: torch.device) -> None:
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record(torch.cuda.current_stream(device))
        self.clock = time.perf_counter()

    def seconds_until(self, later: Moment) -> float:
        """Seconds from this moment to a later one; waits for the later one."""
        if self.event is None or later.event is None:
            return later.clock - self.clock
        later.event.synchronize()
        return self.event.elapsed_time(later.event) / 1e3


class OnTheWay:
    """Numbers being copied from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        if numbers.is_cuda:
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
        self.here = Moment(numbers.device)

    def read(self) -> list[float]:
        """The numbers; waits until they are here."""
        if self.here.event is not None:
            self.here.event.synchronize()
        return self.numbers.tolist()


class FlopCounter:
    """Achieved FLOP/s of this rank: one forward and backward pass of the model at the shapes that it computed.

    Costs a few microseconds per step, and never synchronises with the device.
    """

    def __init__(self, model: ModelConfig, phase: PhaseConfig, tp_size: int, precision: str, cp_size: int = 1) -> None:
        self.cost: StepCost | None = None
        self.view_tokens = 1
        try:
            # Tiled images are counted by view.
            sizes = replace(sizes_of(model), views=1)
            self.view_tokens = sizes.view_tokens
            self.cost = StepCost.of_phase(sizes, Trained.of(phase), tp_size, cp_size)
        except UserError as error:
            log.warning("no FLOP/s: %s", error)
        gpu = gpu_of_device(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.peak_tflops = gpu.tflops if gpu and precision == "bf16" else None

    def tflop(self, micro_batches: Sequence[Batch]) -> float | None:
        """10¹² FLOPs of a step over these micro-batches; None if the architecture's FLOPs are unknown."""
        if self.cost is None:
            return None
        return sum(self.cost.flops(shape_of(batch, self.view_tokens)) for batch in micro_batches) / 1e12

    def rates(self, tflop: float | None, seconds: float) -> dict[str, float]:
        """`tflops_per_rank` of a step that took `seconds`, and `mfu` if the device's peak is known."""
        if tflop is None:
            return {}
        tflops = tflop / seconds
        return {"tflops_per_rank": tflops} | ({"mfu": tflops / self.peak_tflops} if self.peak_tflops else {})


def shape_of(batch: Batch, view_tokens: int) -> Shape:
    """The size of a batch, from values on the host.

    Images of more or less than one view are counted as the number of views of `view_tokens` that makes the same work: from
    the padded patches for images in their own shape, from the image tokens that the delta module reads for pairs.
    """
    rows, tokens = batch.token_ids.shape
    # A sample in a packed row attends only to itself.
    scores = None if batch.segments is None else sum(length**2 for length in batch.segments.lengths)
    views, pairs = len(batch.images), batch.pairs
    if batch.planes is not None:
        views = round(views * batch.images.shape[1] / view_tokens) if batch.planes.shapes else views
        pairs = round(len(batch.planes.roles) / (2 * view_tokens))
    return Shape(rows, tokens, views, pairs, batch.targets, scores)

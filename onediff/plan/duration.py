"""Duration of a step, as a range between the best and the worst case of compute and communication."""

from __future__ import annotations

from dataclasses import dataclass

from onediff.config.parallel import SWAPPED_TENSORS
from onediff.plan.gpus import Gpu
from onediff.plan.memory import Counts
from onediff.plan.setup import Setup
from onediff.plan.tape import Tape
from onediff.plan.traffic import Traffic

EFFICIENCY = (0.35, 0.55)
"""Fraction of peak FLOPS that training steps of wide transformers reach. Published runs lie within this range
(Megatron-LM, arXiv 2104.04473: 0.44 to 0.52 on A100; Llama 3, arXiv 2407.21783: 0.38 to 0.43 on H100)."""
NARROW = 1024
"""Width at which a matrix product reaches half the efficiency of a wide one."""
FP32 = 0.07
"""fp32 peak without TF32, as a fraction of the bf16 peak (H100: 67 of 989)."""
LINKS = (0.6, 0.9)
"""Fraction of a link's bandwidth that collectives reach."""
HOST_GBPS = (10.0, 30.0)
"""10⁹ bytes per second per rank between GPU and host memory (PCIe 4 and 5)."""
HOST_ADAM = (0.15e9, 0.6e9)
"""Parameters per second that a rank's CPU cores update with torch's AdamW, which is memory-bound at 28 bytes each."""
NVME_GBPS = (0.5, 1.5)
"""10⁹ bytes per second per rank to the node's disks."""


@dataclass(frozen=True)
class Duration:
    """Seconds taken by one optimizer step, in the best and the worst case."""

    best: float
    worst: float
    compute: tuple[float, float]
    links: tuple[float, float]
    host: tuple[float, float]

    @property
    def expected(self) -> float:
        """The geometric mean of best and worst."""
        return (self.best * self.worst) ** 0.5


def duration_of(tape: Tape, setup: Setup, traffic: Traffic, hardware_flops: int, width: int, gpu: Gpu) -> Duration:
    """Best case: everything that can overlap does. Worst case: nothing does.

    `hardware_flops` is the number of FLOPs one rank computes in a step.
    """
    share = width / (width + NARROW) * (1 + NARROW / 4096)
    peak = gpu.tflops * 1e12 * (1.0 if setup.bf16 else FP32)
    compute = [hardware_flops / (peak * efficiency * min(1.0, share)) for efficiency in EFFICIENCY]
    # The optimizer reads and writes weights, moments and gradients once.
    counts = Counts.of(tape, setup)
    stepped = counts.trained / setup.copies if setup.stage else counts.trained
    optimizer = 0.0 if setup.offload_optimizer != "none" else 30 * stepped / (gpu.memory_gbps * 1e9)
    data, tensor = [], []
    for efficiency in LINKS:
        inside, between = gpu.link_gbps * 1e9 * efficiency, gpu.network_gbps * 1e9 * efficiency
        data.append(max(traffic.data_inside / inside, traffic.data_between / between))
        outside = traffic.tensor_between + traffic.context_between
        tensor.append((traffic.tensor + traffic.context - outside) / inside + outside / between)
    host = _host(counts, setup)
    best = max(compute[1], data[1]) + tensor[1] + host[1] + optimizer
    worst = compute[0] + data[0] + tensor[0] + host[0] + 2 * optimizer
    return Duration(
        best=best,
        worst=worst,
        compute=(compute[1], compute[0]),
        links=(data[1] + tensor[1], data[0] + tensor[0]),
        host=(host[1], host[0]),
    )


def _host(counts: Counts, setup: Setup) -> tuple[float, float]:
    """Seconds spent on offloaded state, in the worst and the best case."""
    share = counts.trained / setup.copies
    worst = best = 0.0
    if setup.offload_optimizer != "none":
        moved = share * (4 + setup.itemsize)
        worst += moved / (HOST_GBPS[0] * 1e9) + share / HOST_ADAM[0]
        best += moved / (HOST_GBPS[1] * 1e9) + share / HOST_ADAM[1]
    if setup.offload_optimizer == "nvme":
        swapped = 2 * 4 * SWAPPED_TENSORS * share  # in and out
        worst += swapped / (NVME_GBPS[0] * 1e9)
        best += swapped / (NVME_GBPS[1] * 1e9)
    if setup.offload_parameters != "none":
        moved = 2 * setup.accumulation * setup.itemsize * (counts.trained + counts.frozen) / setup.copies
        worst += moved / (HOST_GBPS[0] * 1e9)
        best += moved / (HOST_GBPS[1] * 1e9)
    return worst, best

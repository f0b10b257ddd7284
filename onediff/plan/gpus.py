"""Memory, peak FLOPS and links of the GPUs that `onediff plan` knows, from the manufacturers' data sheets.

Peaks are for dense bf16 with fp32 accumulation; data sheets often print twice that, for sparse matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from onediff.config.section import nearest
from onediff.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """A GPU model and the node it usually comes in."""

    name: str
    device: str
    """The driver's name of the GPU (`torch.cuda.get_device_name`), or a prefix of it."""
    memory_gb: float
    """Memory as reported by the driver, 10⁹ bytes."""
    tflops: float
    """Dense bf16 peak, 10¹² FLOPs per second."""
    memory_gbps: float
    """Memory bandwidth, 10⁹ bytes per second."""
    link_gbps: float
    """Bandwidth to other GPUs in the node, one direction, 10⁹ bytes per second."""
    network_gbps: float
    """Bandwidth to other nodes per GPU, one direction, 10⁹ bytes per second."""
    per_node: int = 8


# NVLink is quoted for both directions together; one direction is half of it. Networks: one InfiniBand port per GPU, as in
# DGX and HGX systems, of 400 Gb/s (H100, H200, B200) or 200 Gb/s (A100); for PCIe cards 100 Gb/s shared by four.
GPUS = (
    # nvidia.com: "NVIDIA DGX B200" data sheet (8 GPUs: 36 PFLOPS sparse bf16, 1,440 GB, NVLink 5 at 1.8 TB/s
    # each).
    Gpu("b200-180g", "NVIDIA B200", 192.0, 2250, 8000, 900, 50),
    # nvidia.com: "NVIDIA H200 Tensor Core GPU" data sheet (1,979 TFLOPS sparse, 141 GB at 4.8 TB/s,
    # NVLink 900 GB/s).
    Gpu("h200-141g", "NVIDIA H200", 150.1, 989, 4800, 450, 50),
    # nvidia.com: "NVIDIA H100 Tensor Core GPU" data sheet (SXM 1,979 and NVL 1,671 TFLOPS sparse)
    # and architecture white paper (PCIe: 756 dense).
    Gpu("h100-94g-nvl", "NVIDIA H100 NVL", 100.0, 835, 3900, 300, 12.5),
    Gpu("h100-80g-pcie", "NVIDIA H100 PCIe", 85.0, 756, 2000, 55, 12.5),
    Gpu("h100-80g", "NVIDIA H100", 85.0, 989, 3350, 450, 50),
    # nvidia.com: "NVIDIA A100 Tensor Core GPU" data sheet (312 TFLOPS dense, NVLink 600 GB/s).
    Gpu("a100-80g", "NVIDIA A100-SXM4-80GB", 85.1, 312, 2039, 300, 25),
    Gpu("a100-40g", "NVIDIA A100-SXM4-40GB", 42.4, 312, 1555, 300, 25),
    Gpu("a100-80g-pcie", "NVIDIA A100 80GB PCIe", 85.1, 312, 1935, 28, 12.5, 4),
    # nvidia.com: "NVIDIA L40S" data sheet (362 TFLOPS dense, 48 GB at 864 GB/s, PCIe 4).
    Gpu("l40s-48g", "NVIDIA L40S", 47.8, 362, 864, 28, 12.5, 4),
    # nvidia.com: "NVIDIA A10" data sheet (125 TFLOPS dense) and "NVIDIA L4" data sheet (242 TFLOPS sparse).
    Gpu("a10-24g", "NVIDIA A10", 24.1, 125, 600, 28, 3.1, 4),
    Gpu("l4-24g", "NVIDIA L4", 24.1, 121, 300, 28, 3.1, 4),
    # nvidia.com: "NVIDIA Ada GPU architecture" and "NVIDIA Ampere GA102 GPU architecture" white papers, appendix A (fp32
    # accumulation).
    Gpu("rtx4090-24g", "NVIDIA GeForce RTX 4090", 25.4, 165, 1008, 28, 3.1, 4),
    Gpu("rtx3090-24g", "NVIDIA GeForce RTX 3090", 25.4, 71, 936, 28, 3.1, 4),
)


def gpu_named(name: str) -> Gpu:
    """The GPU with this name. Raises UserError suggesting the closest known name."""
    for gpu in GPUS:
        if gpu.name == name.lower():
            return gpu
    raise UserError(f"--gpu {name}: unknown GPU{nearest(name.lower(), [gpu.name for gpu in GPUS])}")


def gpu_of_device(device: str) -> Gpu | None:
    """The GPU that the driver calls `device`, or None if it is unknown; the longest matching prefix wins."""
    fits = [gpu for gpu in GPUS if device == gpu.device or device.startswith((gpu.device + " ", gpu.device + "-"))]
    return max(fits, key=lambda gpu: len(gpu.device), default=None)

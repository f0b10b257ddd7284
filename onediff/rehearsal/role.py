"""What one process of a rehearsal is asked to do, and what it returns. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onediff.config.run import RunConfig


@dataclass(frozen=True)
class Role:
    """The task of one process."""

    config: str
    overrides: list[str]
    rank: int
    world: int
    per_node: int
    text_alone: bool
    """use the smallest micro-batch, which has no images, instead of the largest"""
    out: str
    """file that the result is written to"""
    layers: int | None = None
    """number of language model layers to keep (`shallow`); None for all"""
    phases: tuple[str, ...] | None = None
    """phases to rehearse; None for all"""


@dataclass(frozen=True)
class Held:
    """Bytes on one rank."""

    weights: int = 0
    """between steps"""
    gradients: int = 0
    """at the end of a step's last backward pass"""
    optimizer: int = 0
    """master weights and moments"""
    peak: int = 0
    """the maximum during a step, everything included"""


@dataclass(frozen=True)
class Played:
    """One phase of one rank."""

    name: str
    rows: str = ""
    """the micro-batch, described"""
    micro_batches: int = 0
    """in a step of training"""
    rehearsed: int = 0
    """how many of them were run"""
    lanes: list[int] = field(default_factory=list)
    """the rows of each global batch that belong to this rank"""
    building: list[list[Any]] = field(default_factory=list)
    """collectives before the first step, each as `Collective` lists it"""
    step: list[list[Any]] = field(default_factory=list)
    """collectives of the rehearsed step"""
    times: list[list[int]] = field(default_factory=list)
    """`[until, times]`: how often the collectives before number `until` occur in each later step"""
    held: Held = field(default_factory=Held)
    seconds: float = 0.0
    fault: str | None = None
    """the error that ended it, in one line"""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Played:
        """From JSON."""
        return cls(**{**values, "held": Held(**values["held"])})


def rehearsed(config: RunConfig) -> RunConfig:
    """The configuration as it is rehearsed: states that would be on NVMe are in host memory."""

    def in_memory(parallel: Any) -> Any:
        if parallel is None or parallel.offload_optimizer != "nvme":
            return parallel
        return parallel.model_copy(update={"offload_optimizer": "cpu", "nvme_folder": None})

    phases = {
        name: phase.model_copy(update={"parallel": in_memory(phase.parallel)}) for name, phase in config.phases.items()
    }
    return config.model_copy(update={"parallel": in_memory(config.parallel), "phases": phases})

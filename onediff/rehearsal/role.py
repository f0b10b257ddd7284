"""What one rank of a rehearsal is asked for, and what it gives back. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onediff.config.run import RunConfig


@dataclass(frozen=True)
class Role:
    """The job of one process."""

    config: str
    overrides: list[str]
    rank: int
    world: int
    per_node: int
    text_alone: bool
    """whether its rows have no images: the smallest micro-batch instead of the largest"""
    out: str
    """file for the result"""
    layers: int | None = None
    """layers of the language model that are kept (`shallow`); None for all"""
    phases: tuple[str, ...] | None = None
    """None for all"""


@dataclass(frozen=True)
class Held:
    """Bytes on one rank."""

    weights: int = 0
    """between steps"""
    gradients: int = 0
    """when all of a step are there"""
    optimizer: int = 0
    """master weights and moments"""
    peak: int = 0
    """of everything, at the fullest moment of a step"""


@dataclass(frozen=True)
class Played:
    """One phase of one rank."""

    name: str
    rows: str = ""
    """the micro-batch in words"""
    micro_batches: int = 0
    """of a step"""
    rehearsed: int = 0
    """of them"""
    lanes: list[int] = field(default_factory=list)
    """the rows of each global batch that are this rank's"""
    building: list[list[Any]] = field(default_factory=list)
    """collectives before the first step, each as `Collective` lists it"""
    step: list[list[Any]] = field(default_factory=list)
    """collectives of the rehearsed step"""
    times: list[list[int]] = field(default_factory=list)
    """`[until, times]`: how often the collectives before number `until` come in each later step"""
    held: Held = field(default_factory=Held)
    seconds: float = 0.0
    fault: str | None = None
    """what ended it, in a line"""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Played:
        """From JSON."""
        return cls(**{**values, "held": Held(**values["held"])})


def rehearsed(config: RunConfig) -> RunConfig:
    """The run as it can be rehearsed: what it would swap to NVMe lies in the host's memory."""

    def in_memory(parallel: Any) -> Any:
        if parallel is None or parallel.offload_optimizer != "nvme":
            return parallel
        return parallel.model_copy(update={"offload_optimizer": "cpu", "nvme_folder": None})

    phases = {
        name: phase.model_copy(update={"parallel": in_memory(phase.parallel)}) for name, phase in config.phases.items()
    }
    return config.model_copy(update={"parallel": in_memory(config.parallel), "phases": phases})

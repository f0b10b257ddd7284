"""The task and the result of one process of a rehearsal. Torch-free."""

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
    """Use the smallest micro-batch, which has no images, instead of the largest."""
    out: str
    """File to write the result to."""
    layers: int | None = None
    """Number of language model layers to keep (`shallow`); None for all."""
    phases: tuple[str, ...] | None = None
    """Phases to rehearse; None for all."""


@dataclass(frozen=True)
class Held:
    """Bytes on one rank."""

    weights: int = 0
    """Weights between steps."""
    gradients: int = 0
    """Gradients at the end of a step's last backward pass."""
    optimizer: int = 0
    """Master weights and moments."""
    peak: int = 0
    """The maximum of all tensors during a step."""


@dataclass(frozen=True)
class Played:
    """One phase of one rank."""

    name: str
    rows: str = ""
    """A description of the micro-batch."""
    micro_batches: int = 0
    """Micro-batches in a step of training."""
    rehearsed: int = 0
    """Number of micro-batches that were run."""
    lanes: list[int] = field(default_factory=list)
    """The rows of each global batch that belong to this rank."""
    building: list[list[Any]] = field(default_factory=list)
    """Collectives before the first step, each with the fields of `Collective`."""
    step: list[list[Any]] = field(default_factory=list)
    """Collectives of the rehearsed step."""
    times: list[list[int]] = field(default_factory=list)
    """`[until, times]`: how often the collectives before number `until` occur in each later step."""
    held: Held = field(default_factory=Held)
    seconds: float = 0.0
    fault: str | None = None
    """The error that ended it, in one line."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Played:
        """From JSON."""
        return cls(**{**values, "held": Held(**values["held"])})


def rehearsed(config: RunConfig) -> RunConfig:
    """The configuration for a rehearsal, with optimizer states in host memory instead of on NVMe."""

    def in_memory(parallel: Any) -> Any:
        if parallel is None or parallel.offload_optimizer != "nvme":
            return parallel
        return parallel.model_copy(update={"offload_optimizer": "cpu", "nvme_folder": None})

    phases = {
        name: phase.model_copy(update={"parallel": in_memory(phase.parallel)}) for name, phase in config.phases.items()
    }
    return config.model_copy(update={"parallel": in_memory(config.parallel), "phases": phases})

"""Over how many processes a run is spread, and how. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from onediff.config.section import Section


class ParallelConfig(Section):
    """World size = `tensor` × data-parallel size; the second follows from how many processes are started."""

    tensor: int = Field(1, ge=1)
    """Tensor-parallel size T: each layer of the language model is cut over T neighbouring ranks."""
    sequence: bool = False
    """Between the cut layers, where every rank of a tensor group would hold and compute the same, each takes its share of
    the tokens instead: less memory for activations, no more traffic. Nothing changes without tensor parallelism."""
    across_nodes: bool = False
    """Let one tensor-parallel group span several nodes, over the slower links between them."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """What DeepSpeed cuts over the data-parallel ranks: 1 optimizer states, 2 also gradients, 3 also weights."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Keep optimizer states, and step, in the memory of the host (ZeRO stages 1 to 3)."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Keep the cut weights in the memory of the host (ZeRO stage 3)."""

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> ParallelConfig:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_parameters != "none" and self.zero_stage != 3:
            raise ValueError("offload_parameters needs zero_stage 3")
        return self

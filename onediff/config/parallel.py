"""Over how many processes a run is spread, and how. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from onediff.config.section import Section
from onediff.errors import UserError

SUB_GROUP = 100_000_000
"""Elements of a rank that ZeRO-3 steps on at a time where the optimizer is swapped (`sub_group_size`), give or take the
last parameter."""
SWAPPED_TENSORS = 3
"""What is swapped of a sub-group, each as large as it in fp32: weights and both moments (`buffer_count`)."""


DECIDED = {
    "stage": "use parallel.zero_stage",
    "offload_optimizer": "use parallel.offload_optimizer",
    "offload_param": "use parallel.offload_parameters",
    "cpu_offload": "use parallel.offload_optimizer",
    "cpu_offload_param": "use parallel.offload_parameters",
    "cpu_offload_use_pin_memory": "memory is pinned where there is a GPU",
    "sub_group_size": "it follows from parallel.offload_optimizer",
    "zero_hpz_partition_size": "use parallel.shard_within=node",
}
"""Keys of DeepSpeed that other settings decide, and which."""


def check_heads(heads: int, tensor: int, context: int) -> None:
    """Raises UserError when `heads` attention heads cannot be shared out over `tensor` · `context` ranks."""
    if context > 1 and heads % (tensor * context):
        raise UserError(
            f"parallel.context: {heads} attention heads cannot be shared out over {tensor * context} ranks (parallel.tensor "
            f"{tensor} × parallel.context {context})"
        )


def ranks_within(shard_within: str, tensor: int, world: int, per_node: int) -> int:
    """How many ranks of a node share a copy of the weights that the node keeps for itself; 0 if it keeps none.

    `per_node` is the number of ranks of each node. Raises UserError when they cannot share one.
    """
    if shard_within != "node" or world <= per_node:
        return 0
    if world % per_node or per_node % tensor:
        raise UserError(
            f"parallel.shard_within: node needs whole nodes with whole tensor groups; {world} ranks, {per_node} to a node, "
            f"with parallel.tensor {tensor} are not"
        )
    if per_node == tensor:
        raise UserError(
            f"parallel.shard_within: node would leave each rank of a node with whole weights: its {per_node} ranks are one "
            f"tensor group; use shard_within=world, or a smaller parallel.tensor"
        )
    return per_node // tensor


class ParallelConfig(Section):
    """World size = `tensor` × `context` × data-parallel size; the last follows from the number of processes."""

    tensor: int = Field(1, ge=1)
    """Tensor-parallel size T: each layer of the language model is cut over T neighbouring ranks."""
    sequence: bool = False
    """Between the cut layers, where every rank of a tensor group would hold and compute the same, each takes its share of
    the tokens instead: less memory for activations, no more traffic. Nothing changes without tensor parallelism."""
    context: int = Field(1, ge=1)
    """Context-parallel size C: the language model's tokens are shared out over C neighbouring tensor groups, which compute
    the same rows. For rows too long for one GPU; `tensor` × `context` must divide the number of attention heads."""
    across_nodes: bool = False
    """Let the ranks that compute the same rows, `tensor` × `context` of them, span several nodes, over the slower links
    between them."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """What DeepSpeed cuts over the ranks that hold the same blocks, `context` × data-parallel size of them: 1 optimizer
    states, 2 also gradients, 3 also weights."""
    shard_within: Literal["world", "node"] = "world"
    """Where ZeRO-3 gathers weights from. With `node` (DeepSpeed's hpZ), each node also keeps a copy, shared out over its
    ranks: in each step the first gather of a weight goes to all nodes, and later ones stay within the node. That costs
    memory for the copy. Nothing changes on a single node."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Keep optimizer states, and step, in the memory of the host (ZeRO stages 1 to 3). With `nvme` they lie in files below
    `nvme_folder` and come into that memory a part at a time (ZeRO stage 3); checkpoints are then never written in the
    background."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Keep the cut weights in the memory of the host (ZeRO stage 3)."""
    nvme_folder: Path | None = None
    """A folder on a fast disk of each node for `offload_optimizer: nvme`; every run has its own below it. `~` is the home
    folder."""

    reduce_in: Literal["bf16", "fp32"] = "bf16"
    """The type in which gradients are summed over the ranks in bf16 training; fp32 rounds less and sends twice as
    much. In fp32 training they are always fp32."""
    deepspeed: dict[str, Any] = {}
    """Further keys of DeepSpeed's own `zero_optimization`, such as `reduce_bucket_size` or `stage3_prefetch_bucket_size`,
    for tuning on a given cluster; what other settings decide is refused here."""

    @property
    def row_ranks(self) -> int:
        """T · C: the ranks that compute the same rows."""
        return self.tensor * self.context

    @property
    def row_keys(self) -> str:
        """The keys that `row_ranks` follows from, for messages."""
        return "parallel.tensor" if self.context == 1 else "parallel.tensor × parallel.context"

    @field_validator("deepspeed")
    @classmethod
    def _decided_elsewhere(cls, keys: dict[str, Any]) -> dict[str, Any]:
        for key in keys:
            if key in DECIDED:
                raise ValueError(f"deepspeed: {key} is not set here; {DECIDED[key]}")
        return keys

    @model_validator(mode="after")
    def _nodes_shard_weights(self) -> ParallelConfig:
        if self.shard_within == "node" and self.zero_stage != 3:
            raise ValueError(
                f"shard_within: node needs zero_stage 3; use shard_within: world at stage {self.zero_stage}"
            )
        return self

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> ParallelConfig:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_parameters != "none" and self.zero_stage != 3:
            raise ValueError("offload_parameters needs zero_stage 3")
        if self.offload_optimizer == "nvme" and self.zero_stage != 3:
            raise ValueError("offload_optimizer: nvme needs zero_stage 3; with other stages use cpu")
        if self.offload_optimizer == "nvme" and self.nvme_folder is None:
            raise ValueError("offload_optimizer: nvme needs nvme_folder, a folder on a fast disk of each node")
        if self.offload_optimizer != "nvme" and self.nvme_folder is not None:
            raise ValueError(
                "nvme_folder is for offload_optimizer: nvme only; set that too, or write nvme_folder: null"
            )
        return self

    @field_validator("offload_parameters", mode="before")
    @classmethod
    def _weights_stay_in_memory(cls, where: object) -> object:
        if where == "nvme":
            raise ValueError("weights cannot lie on NVMe, only optimizer states can; use cpu")
        return where

    @field_validator("nvme_folder")
    @classmethod
    def _at_home(cls, folder: Path | None) -> Path | None:
        try:
            return folder and folder.expanduser()
        except RuntimeError as error:  # ~somebody
            raise ValueError(f"{folder}: {error}; write the path in full") from None


class PhaseParallelConfig(Section):
    """What one phase does differently from the run's `parallel`; a key that is left out stays as the run has it.

    Tensor and context parallelism are the same in all phases: they decide which processes work together.
    """

    zero_stage: Literal[0, 1, 2, 3] | None = None
    """What DeepSpeed cuts over the data-parallel ranks in this phase. A phase that trains little, or a small model, often
    runs faster at a lower stage; the weights of the next phase are the same to rounding."""
    shard_within: Literal["world", "node"] | None = None
    """Where ZeRO-3 gathers weights from in this phase."""
    offload_optimizer: Literal["none", "cpu", "nvme"] | None = None
    """Where this phase keeps optimizer states."""
    offload_parameters: Literal["none", "cpu"] | None = None
    """Where this phase keeps the cut weights."""
    nvme_folder: Path | None = None
    """A folder on a fast disk of each node, for `offload_optimizer: nvme`."""
    reduce_in: Literal["bf16", "fp32"] | None = None
    """The type in which this phase adds up gradients."""
    deepspeed: dict[str, Any] | None = None
    """Further keys of `zero_optimization`, in place of the run's."""

    def over(self, run: ParallelConfig) -> ParallelConfig:
        """The settings of this phase in a run with the settings `run`. Raises ValueError when they contradict."""
        values = run.model_dump() | self.model_dump(exclude_none=True)
        if values["offload_optimizer"] != "nvme":
            values["nvme_folder"] = self.nvme_folder
        return ParallelConfig.model_validate(values)

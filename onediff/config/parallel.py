"""How a run is distributed over processes. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from onediff.config.section import Section
from onediff.errors import UserError

SUB_GROUP = 100_000_000
"""Elements per rank that ZeRO-3 updates at a time if the optimizer is swapped (`sub_group_size`), to within one
parameter."""
SWAPPED_TENSORS = 3
"""fp32 tensors swapped per sub-group: weights and both moments (`buffer_count`)."""


DECIDED = {
    "stage": "use parallel.zero_stage",
    "offload_optimizer": "use parallel.offload_optimizer",
    "offload_param": "use parallel.offload_parameters",
    "cpu_offload": "use parallel.offload_optimizer",
    "cpu_offload_param": "use parallel.offload_parameters",
    "cpu_offload_use_pin_memory": "memory is pinned if there is a GPU",
    "sub_group_size": "it follows from parallel.offload_optimizer",
    "zero_hpz_partition_size": "use parallel.shard_within=node",
}
"""DeepSpeed keys that other settings determine, and a hint for each."""


def check_heads(heads: int, tensor: int, context: int) -> None:
    """Raises UserError if `heads` attention heads cannot be divided among `tensor` · `context` ranks."""
    if context > 1 and heads % (tensor * context):
        raise UserError(
            f"parallel.context: {heads} attention heads cannot be divided among {tensor * context} ranks (parallel.tensor "
            f"{tensor} × parallel.context {context})"
        )


def ranks_within(shard_within: str, tensor: int, world: int, per_node: int) -> int:
    """The number of ranks over which each node partitions its own copy of the weights; 0 if nodes keep none.

    `per_node` is the number of ranks per node. Raises UserError if they cannot share a copy.
    """
    if shard_within != "node" or world <= per_node:
        return 0
    if world % per_node or per_node % tensor:
        raise UserError(
            f"parallel.shard_within: node needs full nodes with whole tensor groups, but there are {world} ranks, "
            f"{per_node} per node, with parallel.tensor {tensor}"
        )
    if per_node == tensor:
        raise UserError(
            f"parallel.shard_within: node would give every rank of a node the whole weights, because its {per_node} ranks "
            f"form one tensor group; use shard_within=world, or a smaller parallel.tensor"
        )
    return per_node // tensor


class ParallelConfig(Section):
    """World size = `tensor` × `context` × data-parallel size; the last follows from the number of processes."""

    tensor: int = Field(1, ge=1)
    """Tensor-parallel size T: each layer of the language model is split over T neighbouring ranks."""
    sequence: bool = False
    """Sequence parallelism: between the split layers, each rank of a tensor group computes its share of the tokens, instead
    of all ranks computing all tokens. Saves activation memory at the same traffic. No effect without tensor parallelism."""
    context: int = Field(1, ge=1)
    """Context-parallel size C: the language model's tokens are divided among C neighbouring tensor groups, which compute the
    same rows. For rows too long for one GPU; `tensor` × `context` must divide the number of attention heads."""
    across_nodes: bool = False
    """Allow the `tensor` × `context` ranks that compute the same rows to span nodes, which uses slower links."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """What DeepSpeed partitions over the `context` × data-parallel ranks with the same tensor-parallel shard: 1 optimizer
    states, 2 also gradients, 3 also weights."""
    shard_within: Literal["world", "node"] = "world"
    """Where ZeRO-3 gathers weights from. With `node` (DeepSpeed's hpZ), each node also keeps a copy, partitioned over its
    ranks: the first gather of a weight in each step spans all nodes, and later ones stay within the node. The copy costs
    memory. No effect on a single node."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Keep optimizer states in host memory, and update weights there (ZeRO stages 1 to 3). With `nvme` they are stored in
    files below `nvme_folder` and loaded a part at a time (ZeRO stage 3); checkpoints are then never written in the
    background."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Keep the partitioned weights in host memory (ZeRO stage 3)."""
    nvme_folder: Path | None = None
    """Folder on a fast local disk of each node for `offload_optimizer: nvme`; each run uses its own subfolder. `~` is the
    home folder."""

    reduce_in: Literal["bf16", "fp32"] = "bf16"
    """The type in which gradients are reduced over ranks in bf16 training. fp32 rounds less and sends twice as much. fp32
    training always reduces in fp32."""
    deepspeed: dict[str, Any] = {}
    """Further keys of DeepSpeed's `zero_optimization`, such as `reduce_bucket_size` or `stage3_prefetch_bucket_size`, for
    tuning on a given cluster. Keys that other settings determine are refused."""

    @property
    def row_ranks(self) -> int:
        """T · C: the ranks that compute the same rows."""
        return self.tensor * self.context

    @property
    def row_keys(self) -> str:
        """The keys that determine `row_ranks`, for messages."""
        return "parallel.tensor" if self.context == 1 else "parallel.tensor × parallel.context"

    @field_validator("deepspeed")
    @classmethod
    def _decided_elsewhere(cls, keys: dict[str, Any]) -> dict[str, Any]:
        for key in keys:
            if key in DECIDED:
                raise ValueError(f"deepspeed: {key} cannot be set here; {DECIDED[key]}")
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
                "nvme_folder is only for offload_optimizer: nvme; set that too, or write nvme_folder: null"
            )
        return self

    @field_validator("offload_parameters", mode="before")
    @classmethod
    def _weights_stay_in_memory(cls, where: object) -> object:
        if where == "nvme":
            raise ValueError("only optimizer states can be offloaded to NVMe, not weights; use cpu")
        return where

    @field_validator("nvme_folder")
    @classmethod
    def _at_home(cls, folder: Path | None) -> Path | None:
        try:
            return folder and folder.expanduser()
        except RuntimeError as error:  # ~somebody
            raise ValueError(f"{folder}: {error}; write the path in full") from None


class PhaseParallelConfig(Section):
    """One phase's exceptions from the run's `parallel`; a missing key keeps the run's value.

    Tensor and context parallelism are the same in all phases, because they determine the process groups.
    """

    zero_stage: Literal[0, 1, 2, 3] | None = None
    """What DeepSpeed partitions in this phase. A phase that trains few parameters, or a small model, often runs faster at a
    lower stage; the resulting weights are the same to rounding."""
    shard_within: Literal["world", "node"] | None = None
    """Where ZeRO-3 gathers weights from in this phase."""
    offload_optimizer: Literal["none", "cpu", "nvme"] | None = None
    """Where this phase keeps optimizer states."""
    offload_parameters: Literal["none", "cpu"] | None = None
    """Where this phase keeps the partitioned weights."""
    nvme_folder: Path | None = None
    """Folder on a fast local disk of each node for `offload_optimizer: nvme`."""
    reduce_in: Literal["bf16", "fp32"] | None = None
    """The type in which this phase reduces gradients."""
    deepspeed: dict[str, Any] | None = None
    """Further keys of `zero_optimization`, instead of the run's."""

    def over(self, run: ParallelConfig) -> ParallelConfig:
        """The run's settings with this phase's exceptions. Raises ValueError if they contradict each other."""
        values = run.model_dump() | self.model_dump(exclude_none=True)
        if values["offload_optimizer"] != "nvme":
            values["nvme_folder"] = self.nvme_folder
        return ParallelConfig.model_validate(values)

"""The setup of a phase: everything except the model that memory, traffic and time depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onediff.config.parallel import ParallelConfig
from onediff.config.training import Checkpointing

BUCKET = 200_000_000
"""Maximum number of elements in a gradient bucket (`reduce_bucket_size`)."""
LIVE = 1_000_000_000
"""Maximum number of gathered elements that ZeRO-3 keeps (`stage3_max_live_parameters`)."""
PERSISTENT = 100_000
"""ZeRO-3 never releases parameters smaller than this (`stage3_param_persistence_threshold`)."""


@dataclass(frozen=True)
class Setup:
    """One way to run a phase."""

    world: int
    """Number of ranks, one per GPU."""
    per_node: int
    """Ranks per node."""
    tensor: int
    stage: int
    micro_batch: int
    """Rows that one rank computes at once."""
    global_batch: int
    bf16: bool
    checkpointing: Checkpointing
    offload_optimizer: str = "none"
    offload_parameters: str = "none"
    loss_chunk: int | None = None
    """Number of targets whose logits exist at once; None for all."""
    sequence: bool = False
    """Whether a tensor group splits the tokens between parallel layers (sequence parallelism)."""
    context: int = 1
    """Number of tensor groups that split the language model's tokens."""
    save_in_background: bool = False
    """Whether checkpoints are written while training continues."""
    peer_copies: bool = False
    """Whether each rank's state is also kept in the memory of two nodes."""
    sharing: int = 0
    """Number of ranks that share the copy of the weights that a node keeps (`parallel.shard_within`); 0 for no copy."""
    reduces_in_fp32: bool = False
    """Whether bf16 gradients are reduced in fp32."""
    bucket: int = BUCKET
    live: int = LIVE
    persistent: int = PERSISTENT

    def with_keys_of(self, parallel: ParallelConfig) -> Setup:
        """The same setup with `parallel.reduce_in` and the keys of `parallel.deepspeed` that affect memory applied."""
        keys = parallel.deepspeed

        def number(key: str, default: int) -> int:
            value = keys.get(key, default)
            return int(value) if isinstance(value, int | float) else default  # "auto"

        return replace(
            self,
            reduces_in_fp32=self.bf16 and parallel.reduce_in == "fp32",
            bucket=number("reduce_bucket_size", BUCKET),
            live=number("stage3_max_live_parameters", LIVE),
            persistent=number("stage3_param_persistence_threshold", PERSISTENT),
        )

    @property
    def reduced_itemsize(self) -> int:
        """Bytes per element of a gradient while it is reduced."""
        return 4 if self.reduces_in_fp32 else self.itemsize

    @property
    def data(self) -> int:
        """D: the number of groups of ranks that read different rows."""
        return self.world // self.row_ranks

    @property
    def row_ranks(self) -> int:
        """T · C: the number of ranks that compute the same rows."""
        return self.tensor * self.context

    @property
    def copies(self) -> int:
        """D · C: the number of ranks that ZeRO partitions over."""
        return self.world // self.tensor

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and step."""
        return self.global_batch // (self.micro_batch * self.data)

    @property
    def itemsize(self) -> int:
        """Bytes per weight or activation in the compute precision."""
        return 2 if self.bf16 else 4

    @property
    def copies_checkpoints(self) -> bool:
        """Whether each rank copies its state into host memory before writing it; state swapped to NVMe is not copied."""
        return self.save_in_background and self.offload_optimizer != "nvme"

    @property
    def nodes(self) -> int:
        return -(-self.world // self.per_node)

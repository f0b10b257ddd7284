"""How a phase is run: everything besides the model that memory, traffic and time depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onediff.config.parallel import ParallelConfig
from onediff.config.training import Checkpointing

BUCKET = 200_000_000
"""Elements that gradients are collected in before they are reduced (`reduce_bucket_size`), at most."""
LIVE = 1_000_000_000
"""Elements of gathered weights that ZeRO-3 keeps (`stage3_max_live_parameters`), at most."""
PERSISTENT = 100_000
"""Parameters smaller than this are never given back by ZeRO-3 (`stage3_param_persistence_threshold`)."""


@dataclass(frozen=True)
class Setup:
    """One way to run a phase."""

    world: int
    """ranks, one for each GPU"""
    per_node: int
    """ranks of one node"""
    tensor: int
    stage: int
    micro_batch: int
    """rows that one rank computes at a time"""
    global_batch: int
    bf16: bool
    checkpointing: Checkpointing
    offload_optimizer: str = "none"
    offload_parameters: str = "none"
    loss_chunk: int | None = None
    """targets whose logits exist at a time; None for all"""
    sequence: bool = False
    """whether ranks of a tensor group share out the tokens between cut layers"""
    context: int = 1
    """tensor groups that share out the language model's tokens"""
    save_in_background: bool = False
    """whether checkpoints are written while the training goes on"""
    peer_copies: bool = False
    """whether each rank's state is copied into the memory of two nodes"""
    reduces_in_fp32: bool = False
    """whether gradients in bf16 are reduced in fp32"""
    bucket: int = BUCKET
    live: int = LIVE
    persistent: int = PERSISTENT

    def with_keys_of(self, parallel: ParallelConfig) -> Setup:
        """The same with what `parallel.reduce_in` and those keys of `parallel.deepspeed` that cost memory ask for."""
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
        """Bytes of a gradient on its way to other ranks."""
        return 4 if self.reduces_in_fp32 else self.itemsize

    @property
    def data(self) -> int:
        """D: groups of ranks that read different rows."""
        return self.world // self.row_ranks

    @property
    def row_ranks(self) -> int:
        """T · C: ranks that compute the same rows."""
        return self.tensor * self.context

    @property
    def copies(self) -> int:
        """D · C: ranks over which ZeRO shares out."""
        return self.world // self.tensor

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank in one step."""
        return self.global_batch // (self.micro_batch * self.data)

    @property
    def itemsize(self) -> int:
        """Bytes of a weight or activation in the precision of the computation."""
        return 2 if self.bf16 else 4

    @property
    def copies_checkpoints(self) -> bool:
        """Whether each rank copies what it writes into the memory of the host; never what is swapped to NVMe."""
        return self.save_in_background and self.offload_optimizer != "nvme"

    @property
    def nodes(self) -> int:
        return -(-self.world // self.per_node)

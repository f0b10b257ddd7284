"""How a phase is run: everything besides the model that memory, traffic and time depend on."""

from __future__ import annotations

from dataclasses import dataclass

from onediff.config.training import Checkpointing


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
    fp8: tuple[str, ...] = ()
    """parts whose transformer layers multiply in fp8"""
    sequence: bool = False
    """whether ranks of a tensor group share out the tokens between cut layers"""
    save_in_background: bool = False
    """whether checkpoints are written while the training goes on"""

    @property
    def data(self) -> int:
        """D: ranks that read different rows."""
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

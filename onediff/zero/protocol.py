"""What training asks of an engine that shares a model out over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from onediff.parallel.block import BlockRange


@dataclass
class ParameterShard:
    """A range of one parameter on this rank, with its optimizer state."""

    name: str
    parameter: torch.nn.Parameter
    piece: BlockRange
    values: torch.Tensor
    """the fp32 master weights that the optimizer steps on, or the parameter's own values where it is frozen"""
    position: int
    """where in `values` the range begins"""
    shared: bool
    """whether every data-parallel rank holds the same range"""
    swapped: int | None = None
    """the group of shards whose tensors, `values` too, are empty until they are brought in; None for what is in memory"""

    @property
    def owner(self) -> torch.Tensor | None:
        """The tensor that the optimizer steps on; None where frozen."""
        return self.values if self.parameter.requires_grad else None

    @property
    def weight(self) -> torch.Tensor:
        """`[length]`, a view."""
        return self.of(self.values)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same range, `[length]`, of a tensor as large as `values`: a view."""
        return tensor.detach().view(-1).narrow(0, self.position, self.piece.length)


def by_swap_group(shard: ParameterShard) -> int:
    """A sort key: shards in memory first, then one swapped group after the other."""
    return -1 if shard.swapped is None else shard.swapped


class SwapIn(Protocol):
    """Brings swapped shards into memory, one group at a time."""

    def bring(self, group: int | None) -> None:
        """Brings one group in, in place of another; None is always in memory."""


class ShardedEngine(Protocol):
    """A model, its optimizer, and the ranks that share them."""

    @property
    def module(self) -> Any:
        """The model."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""

    @property
    def stage(self) -> int:
        """A number that checkpoints record; no decision depends on it."""

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The data-parallel ranks."""

    @property
    def tensor_rank(self) -> int:
        """0 … T - 1."""

    @property
    def tensor_size(self) -> int:
        """T."""

    def __call__(self, *inputs: Any) -> Any:
        """The model's forward pass."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds up gradients. What counts is their mean over the data-parallel ranks and the micro-batches of a step."""

    def step(self) -> None:
        """Called after each micro-batch. After the last one of a step it clips and lets the optimizer step.

        A gradient that is not finite changes nothing: neither weights nor moments nor counts.
        """

    def gradient_norm(self) -> torch.Tensor | float | None:
        """Of the last step, over all ranks and before clipping; not finite where the step was skipped."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups; writing `lr` sets the learning rate of the next step."""

    def close(self) -> None:
        """Lets go of model and states, which are freed when nothing else holds them."""

    # What a checkpoint needs.

    def shards(self) -> Iterator[ParameterShard]:
        """Everything this rank holds, in the model's own order."""

    def swap_in(self, *, changes: bool) -> AbstractContextManager[SwapIn]:
        """A block in which swapped shards can be brought in; `changes` writes them back."""

    def moments(self, shard: ParameterShard) -> dict[str, torch.Tensor]:
        """The optimizer's tensors as large as `shard.values`; none before the first step, or where frozen."""

    def create_moments(self, shards: list[ParameterShard]) -> None:
        """Makes zero moments for shards that have none."""

    def steps_of(self, shard: ParameterShard) -> int | None:
        """How many steps the optimizer has made on the shard; None where it does not count."""

    def set_steps(self, owner: torch.Tensor, steps: int) -> None:
        """Sets the count from which Adam corrects its bias."""

    def publish(self, shard: ParameterShard) -> None:
        """Puts the weights of a shard, in memory now, where the model is gathered from."""

    def publish_all(self) -> None:
        """Makes the model compute with all that was published. Collective."""

    def continue_after(self, step: int) -> None:
        """Sets the count of steps made so far."""

    @property
    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The groups of the torch optimizer inside; none where there is no optimizer."""

"""What training needs from an engine that shards a model over ranks."""

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
    """the fp32 master weights that the optimizer updates, or the parameter's own values if it is frozen"""
    position: int
    """where the range begins in `values`"""
    shared: bool
    """whether every data-parallel rank holds the same range"""
    swapped: int | None = None
    """the group of shards whose tensors, `values` included, are empty until loaded; None for shards in memory"""

    @property
    def owner(self) -> torch.Tensor | None:
        """The tensor that the optimizer updates; None if frozen."""
        return self.values if self.parameter.requires_grad else None

    @property
    def weight(self) -> torch.Tensor:
        """`[length]`, a view."""
        return self.of(self.values)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same range, `[length]`, of a tensor of the size of `values`: a view."""
        return tensor.detach().view(-1).narrow(0, self.position, self.piece.length)


def by_swap_group(shard: ParameterShard) -> int:
    """A sort key: shards in memory first, then one swapped group after the other."""
    return -1 if shard.swapped is None else shard.swapped


class SwapIn(Protocol):
    """Loads swapped shards into memory, one group at a time."""

    def bring(self, group: int | None) -> None:
        """Loads one group in place of another; None is always in memory."""


class ShardedEngine(Protocol):
    """A model, its optimizer, and the ranks that share them."""

    @property
    def module(self) -> Any:
        """The model."""

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""

    @property
    def stage(self) -> int:
        """A number that checkpoints record; no decision depends on it."""

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The ranks that share the model out: those of all context groups with the same tensor rank."""

    @property
    def tensor_rank(self) -> int:
        """0 … T - 1."""

    @property
    def tensor_size(self) -> int:
        """T."""

    @property
    def context_size(self) -> int:
        """C."""

    def __call__(self, *inputs: Any) -> Any:
        """The model's forward pass."""

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulates gradients; a step uses their mean over the data-parallel ranks and its micro-batches."""

    def step(self) -> None:
        """Called after each micro-batch. After the last one of a step it clips and lets the optimizer step.

        A step with a gradient that is not finite changes nothing: neither weights nor moments nor counts.
        """

    def gradient_norm(self) -> torch.Tensor | float | None:
        """The gradient norm of the last step, over all ranks and before clipping; not finite if the step was skipped."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups; writing `lr` sets the learning rate of the next step."""

    def close(self) -> None:
        """Drops the model and its states, which are freed once nothing else refers to them."""

    # What a checkpoint needs.

    def shards(self) -> Iterator[ParameterShard]:
        """Everything this rank holds, in the model's own order."""

    def swap_in(self, *, changes: bool) -> AbstractContextManager[SwapIn]:
        """A block in which swapped shards can be loaded; `changes` writes them back."""

    def moments(self, shard: ParameterShard) -> dict[str, torch.Tensor]:
        """The optimizer's tensors of the size of `shard.values`; none before the first step, or if frozen."""

    def create_moments(self, shards: list[ParameterShard]) -> None:
        """Creates zero moments for shards that have none."""

    def steps_of(self, shard: ParameterShard) -> int | None:
        """How many steps the optimizer has made on the shard; None if it does not count."""

    def set_steps(self, owner: torch.Tensor, steps: int) -> None:
        """Sets the step count that Adam corrects its bias by."""

    def publish(self, shard: ParameterShard) -> None:
        """Copies the weights of a shard, which is in memory, to where the model is gathered from."""

    def publish_all(self) -> None:
        """Makes the model compute with all published weights. Collective."""

    def continue_after(self, step: int) -> None:
        """Sets the number of steps made so far."""

    @property
    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The groups of the torch optimizer inside; none without an optimizer."""

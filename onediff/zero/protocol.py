"""The interface that training needs from an engine that shards a model over ranks."""

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
    """The fp32 master weights that the optimizer updates, or the parameter's own values if it is frozen."""
    position: int
    """Where the range begins in `values`."""
    shared: bool
    """Whether every data-parallel rank holds the same range."""
    swapped: int | None = None
    """The swap group of the shard, whose tensors, including `values`, are empty until loaded; None for shards in memory."""

    @property
    def owner(self) -> torch.Tensor | None:
        """The tensor that the optimizer updates, or None if the parameter is frozen."""
        return self.values if self.parameter.requires_grad else None

    @property
    def weight(self) -> torch.Tensor:
        """`[length]`, a view."""
        return self.of(self.values)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same range, `[length]`, of a tensor as large as `values`; a view."""
        return tensor.detach().view(-1).narrow(0, self.position, self.piece.length)


def by_swap_group(shard: ParameterShard) -> int:
    """A sort key: shards in memory first, then swap group by swap group."""
    return -1 if shard.swapped is None else shard.swapped


class SwapIn(Protocol):
    """Loads swapped shards into memory, one group at a time."""

    def bring(self, group: int | None) -> None:
        """Loads a group, replacing the loaded one; None is always in memory."""


class ShardedEngine(Protocol):
    """A model and its optimizer, sharded over ranks."""

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
        """The ranks over which the model is sharded: those with the same tensor rank, in all context groups."""

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
        """Accumulates gradients; a step uses their mean over data-parallel ranks and micro-batches."""

    def step(self) -> None:
        """Call after each micro-batch. After the last micro-batch of a step, clips and runs the optimizer.

        A step with non-finite gradients changes neither weights nor moments nor step counts.
        """

    def gradient_norm(self) -> torch.Tensor | float | None:
        """The gradient norm of the last step over all ranks, before clipping; not finite if the step was skipped."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups; writing `lr` sets the learning rate of the next step."""

    def close(self) -> None:
        """Drops the model and its states, which are freed once nothing else refers to them."""

    # For checkpoints.

    def shards(self) -> Iterator[ParameterShard]:
        """Everything that this rank holds, in the order of the model."""

    def swap_in(self, *, changes: bool) -> AbstractContextManager[SwapIn]:
        """A context in which swapped shards can be loaded; with `changes`, they are written back."""

    def moments(self, shard: ParameterShard) -> dict[str, torch.Tensor]:
        """The optimizer's tensors as large as `shard.values`; none before the first step, or if frozen."""

    def create_moments(self, shards: list[ParameterShard]) -> None:
        """Creates zero moments for shards that have none."""

    def steps_of(self, shard: ParameterShard) -> int | None:
        """The number of optimizer steps on the shard, or None if the optimizer does not count."""

    def set_steps(self, owner: torch.Tensor, steps: int) -> None:
        """Sets the step count used for Adam's bias correction."""

    def publish(self, shard: ParameterShard) -> None:
        """Copies the weights of a shard in memory to the range that the model gathers."""

    def publish_all(self) -> None:
        """Makes the model use all published weights. Collective."""

    def continue_after(self, step: int) -> None:
        """Sets the number of steps taken so far."""

    @property
    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the inner torch optimizer; empty without one."""

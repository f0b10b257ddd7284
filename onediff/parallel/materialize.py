"""Materialises a Hugging Face model on this rank, range by range.

The model starts on the meta device, where it takes no memory. Its layers are split for tensor parallelism. Then each
parameter gets memory for this rank's part only (under ZeRO-3, its range of the rank's block), which is filled from the
source. No process ever holds more than its share and one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from onediff.parallel.block import Block, BlockRange, overlaps
from onediff.parallel.topology import Topology
from onediff.parallel.weights import put_weights
from onediff.zero.parameters import shard


class WeightSource(Protocol):
    """A source of full parameters that can be read in ranges."""

    def fill(self, name: str, piece: BlockRange, target: torch.Tensor) -> None:
        """Copies the range `piece` of the parameter `name` into the flat tensor `target`."""


class InMemory:
    """A source of parameters in memory, such as those of a small model with random weights."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def fill(self, name: str, piece: BlockRange, target: torch.Tensor) -> None:
        """Copies the range `piece` of the parameter `name` into the flat tensor `target`."""
        full = self.tensors[name].detach().reshape(-1)
        whole = BlockRange(piece.block.whole(piece.block.shape), 0, full.numel())
        for overlap in overlaps(whole, piece):
            overlap.copy(full.narrow(0, overlap.source_start, overlap.source_length), target)


def place(
    model: Any,
    source: WeightSource | None,
    topology: Topology,
    *,
    zero_config: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    cut: bool = True,
) -> Any:
    """Materialises a model on the meta device, split over the tensor group, and under ZeRO-3 over the data group.

    `zero_config` is DeepSpeed's configuration at stage 3, else None. `cut=False` leaves layers whole, as for a vision tower.
    Without a `source`, all parameters are zero. Collective under ZeRO-3. Raises what `source` raises.
    """
    if cut and topology.tp_size > 1:
        from onediff.parallel.tensor import cut_layers  # Megatron-core takes seconds to import

        assert topology.mpu is not None

        cut_layers(model, topology.mpu)
        if topology.sequence:
            from onediff.parallel.sequence import share_tokens

            share_tokens(model, topology.mpu)
    _buffers(model, device)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                made[parameter] = _with_memory(parameter, device)
                if zero_config is not None:
                    shard(made[parameter], zero_config, topology.data_group, topology.mpu)
            setattr(module, key, made[parameter])
    if source is not None:
        put_weights(model, source.fill)
        _fill_buffers(model, source)
    if topology.tp_size > 1:
        _sum_marked_gradients(model, topology)
    return model


def _buffers(model: Any, device: torch.device | str) -> None:
    """Materialises buffers with the values that the model's own class gives them."""
    for module in model.modules():
        own = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer is not None]
        if not any(buffer.is_meta for _, buffer in own):
            continue
        for name, buffer in own:
            persistent = name not in module._non_persistent_buffers_set
            module.register_buffer(name, torch.zeros_like(buffer, device=device), persistent)
        with torch.no_grad():
            # Parameters are still on the meta device, where initialisation has no effect.
            model._init_weights(module)


def _fill_buffers(model: Any, source: WeightSource) -> None:
    """Fills buffers that are stored with the weights, such as a scale per layer. Every rank holds them whole."""
    for name, buffer in model.named_buffers():
        owner, _, key = name.rpartition(".")
        if key not in model.get_submodule(owner)._non_persistent_buffers_set:
            source.fill(name, BlockRange(Block.whole(buffer.shape), 0, buffer.numel()), buffer.view(-1))


def _with_memory(parameter: nn.Parameter, device: torch.device | str) -> nn.Parameter:
    # Zeros, so that vocabulary padding is finite.
    new = nn.Parameter(torch.zeros_like(parameter, device=device), requires_grad=parameter.requires_grad)
    # Fake tensors have attributes of their own.
    vars(new).update({key: value for key, value in vars(parameter).items() if key not in vars(new)})
    return new


def _sum_marked_gradients(model: nn.Module, topology: Topology) -> None:
    """Sums gradients over the tensor group for parameters whose gradient each rank computes in part."""
    assert topology.mpu is not None
    group = topology.mpu.get_tensor_model_parallel_group()

    def summed(gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    for parameter in model.parameters():
        if getattr(parameter, "sum_gradient_over_tensor_group", False):
            trains = parameter.requires_grad
            parameter.requires_grad_(True).register_hook(summed)  # it may train in a later phase
            parameter.requires_grad_(trains)

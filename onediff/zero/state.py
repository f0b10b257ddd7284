"""The weights and optimizer state of a DeepSpeed engine on this rank, in the same form for every ZeRO stage.

DeepSpeed keeps fp32 weights and moments in different places: stage 0 in the parameters themselves (or in fp32 copies),
stages 1 and 2 in one flat range per parameter group, and stage 3 in flat groups of per-parameter ranges, in memory or
swapped to files. This module turns each into a list of `ParameterShard`: a range of a parameter, the tensor that the
optimizer updates, and the position in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from onediff.parallel.block import Block, BlockRange, block_of
from onediff.zero.parameters import drop_node_copies, own_range
from onediff.zero.protocol import ParameterShard
from onediff.zero.swapped import is_swapped


def optimizer_of(engine: Any) -> torch.optim.Optimizer | None:
    """The torch optimizer inside DeepSpeed's wrapper, if the engine has one."""
    return getattr(engine, "basic_optimizer", None)


def shards(engine: Any) -> Iterator[ParameterShard]:
    """This rank's shards of the engine's parameters, in the order of the model."""
    stage = engine.zero_optimization_stage()
    copies = _fp32_copies(engine) if stage == 0 else {}
    for name, parameter in engine.module.named_parameters():
        block = block_of(parameter)
        if stage == 3:
            yield _of_stage_three(engine, name, parameter, block)
        elif not parameter.requires_grad:
            yield ParameterShard(name, parameter, BlockRange(block, 0, block.real), parameter, 0, True)
        elif stage == 0:
            yield ParameterShard(
                name, parameter, BlockRange(block, 0, block.real), copies.get(parameter, parameter), 0, True
            )
        elif (mapping := parameter._hp_mapping) is not None:
            owner = _flat_groups(engine)[mapping.param_group_index]
            offset, position = mapping.lp_fragment_address.start, mapping.hp_fragment_address.start
            length = _real_length(block, offset, mapping.lp_fragment_address.numel)
            yield ParameterShard(name, parameter, BlockRange(block, offset, length), owner, position, False)


def _of_stage_three(engine: Any, name: str, parameter: torch.nn.Parameter, block: Block) -> ParameterShard:
    values, offset, share = own_range(parameter)
    piece = BlockRange(block, min(offset, block.real), _real_length(block, offset, share))
    if not parameter.requires_grad:
        return ParameterShard(name, parameter, piece, values, 0, False)
    zero = engine.optimizer
    group, position, _ = zero.grad_position[zero.get_param_id(parameter)]
    swapped = group if is_swapped(engine, group) else None
    return ParameterShard(name, parameter, piece, zero.fp32_partitioned_groups_flat[group], position, False, swapped)


def _real_length(block: Block, offset: int, length: int) -> int:
    """The length of a range without the padding of ZeRO's last partition and of the vocabulary."""
    return max(0, min(offset + length, block.real) - offset)


def _flat_groups(engine: Any) -> list[torch.Tensor]:
    """The fp32 ranges that stages 1 and 2 update, one per parameter group."""
    zero = engine.optimizer
    found = getattr(zero, "single_partition_of_fp32_groups", None)
    return found if found is not None else zero.fp32_groups_flat_partition


def _fp32_copies(engine: Any) -> Mapping[torch.nn.Parameter, torch.Tensor]:
    """At stage 0 in low precision, the fp32 copy of each parameter. Empty in fp32."""
    wrapper = engine.optimizer
    if not hasattr(wrapper, "fp32_groups"):
        return {}
    pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
    return {p: copy for group, copies in pairs for p, copy in zip(group, copies, strict=True)}


def moments(engine: Any, part: ParameterShard) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as large as `part.values`; none before the first step, or if frozen."""
    return {
        key: value
        for key, value in _state(engine, part.owner).items()
        if key != "step" and torch.is_tensor(value) and value.numel() == part.values.numel()
    }


def steps_of(engine: Any, part: ParameterShard) -> int | None:
    """The number of optimizer steps on this range, or None if the optimizer does not count."""
    state = _state(engine, part.owner)
    step = state.get("step", _group_of(engine, part.owner).get("step") if state else None)
    return None if step is None else int(step)


def set_steps(engine: Any, owner: torch.Tensor, steps: int) -> None:
    """Sets the step count used for Adam's bias correction."""
    state = _state(engine, owner)
    if torch.is_tensor(state.get("step")):
        state["step"].fill_(steps)
    elif "step" in state:
        state["step"] = steps
    elif state:
        # Apex counts steps per parameter group.
        _group_of(engine, owner)["step"] = steps


def _state(engine: Any, owner: torch.Tensor | None) -> dict[str, Any]:
    optimizer = optimizer_of(engine)
    if owner is None or optimizer is None or owner not in optimizer.state:
        return {}
    return optimizer.state[owner]


def _group_of(engine: Any, owner: torch.Tensor | None) -> dict[str, Any]:
    """The optimizer group of `owner`."""
    optimizer = optimizer_of(engine)
    groups = [] if optimizer is None else optimizer.param_groups
    return next((group for group in groups if any(member is owner for member in group["params"])), {})


def create_moments(engine: Any, parts: list[ParameterShard]) -> None:
    """Makes the optimizer create its tensors for every range that has none, by a step without effect.

    Gradient and learning rate are zero, so no weights change; the step count is set afterwards.
    """
    optimizer = optimizer_of(engine)
    assert optimizer is not None
    owners = {id(part.owner): part.owner for part in parts if part.owner is not None}
    for owner in owners.values():
        if optimizer.state.get(owner):
            continue
        group = dict(_group_of(engine, owner) or optimizer.param_groups[0], params=[owner], lr=0.0)
        kept, optimizer.param_groups[:] = list(optimizer.param_groups), [group]
        gradient, owner.grad = owner.grad, torch.zeros_like(owner)
        try:
            optimizer.step()
        finally:
            owner.grad = gradient
            optimizer.param_groups[:] = kept


def publish(engine: Any, part: ParameterShard) -> None:
    """Under ZeRO-3, copies the weights of a shard in memory to the range that the model gathers."""
    if engine.zero_optimization_stage() == 3 and part.owner is not None:
        with torch.no_grad():
            own_range(part.parameter)[0].narrow(0, 0, part.piece.length).copy_(part.weight)


def publish_weights(engine: Any) -> None:
    """Makes the model use the weights that were published on all ranks. Collective."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    with torch.no_grad():
        if stage == 0:
            for parameter, copy in _fp32_copies(engine).items():
                parameter.copy_(copy)
        elif stage == 3:
            drop_node_copies(engine.module.parameters())
            if zero.persistent_parameters:
                # Small parameters are kept whole on every rank; drop those copies and gather them again.
                zero.persistent_parameters[0].partition(zero.persistent_parameters)
                zero.checkpoint_event_epilogue()
        else:
            zero.update_lp_params()

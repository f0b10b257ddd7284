"""Which parts train in a phase, and with what learning rate and decay."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from onediff.config.training import OptimizerConfig, PhaseConfig
from onediff.model.lora import is_adapter
from onediff.model.onediff import PARTS
from onediff.parallel.block import block_of


def freeze(model: nn.Module, phase: PhaseConfig) -> None:
    """Lets the parts of `phase.train` train and no other; what is frozen costs no gradient and no optimizer memory.

    Raises UserError for a `vision_last` that the tower has not.
    """
    model_parts: dict[str, Any] = {part: getattr(model, part) for part in PARTS}
    for part, module in model_parts.items():
        module.requires_grad_(part in phase.train)
    if phase.vision_last is not None:
        model_parts["vision"].train_last(phase.vision_last)
    if phase.lora is not None:
        for name, parameter in model_parts["language"].named_parameters():
            parameter.requires_grad_(is_adapter(name))


def parameter_groups(model: nn.Module, phase: PhaseConfig, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Optimizer groups by part and by decay; `peak_lr` is what the schedule scales.

    Matrices of layers decay; biases, norms and learned tokens do not. A parameter that two parts share is in one group.
    """
    groups: list[dict[str, Any]] = []
    seen: set[int] = set()
    for part in PARTS:
        if part not in phase.train:
            continue
        peak = phase.lr_of.get(part, phase.lr or optimizer.lr)
        weight_decay = phase.weight_decay_of.get(part, optimizer.weight_decay)
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for module in getattr(model, part).modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                # Not by the class `nn.Linear`: under tensor parallelism layers have other classes.
                is_embedding = "Embedding" in type(module).__name__
                is_matrix = name == "weight" and not is_embedding and len(block_of(parameter).shape) > 1
                (matrices if is_matrix else others).append(parameter)
        for kind, parameters, decay in (("matrices", matrices, weight_decay), ("others", others, 0.0)):
            if parameters:
                name = f"{part}.{kind}"
                groups.append(
                    {
                        "name": name,
                        "part": part,
                        "params": parameters,
                        "peak_lr": peak,
                        "lr": peak,
                        "weight_decay": decay,
                    }
                )
    return groups


def trainable(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameters and trained parameters of each part (of the whole model, where a rank holds a slice only)."""
    counts = {}
    for part in PARTS:
        sizes = [(prod(block_of(p).shape), p.requires_grad) for p in getattr(model, part).parameters()]
        counts[part] = (sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))
    return counts

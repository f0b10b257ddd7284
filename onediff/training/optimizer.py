"""The trained parameters of a phase, their learning rates and weight decay, and the AdamW kernel."""

from __future__ import annotations

import math
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from onediff.config.training import OptimizerConfig, PhaseConfig
from onediff.errors import UserError
from onediff.model.apex import find_apex
from onediff.model.lora import is_adapter
from onediff.model.onediff import PARTS
from onediff.parallel.block import block_of
from onediff.training.adamw import AdamW
from onediff.training.muon import Muon


def freeze(model: nn.Module, phase: PhaseConfig) -> None:
    """Freezes all parts but those in `phase.train`; frozen parts need no gradients and no optimizer memory.

    Raises UserError if `vision_last` is more than the tower's layers.
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

    Matrices of layers decay; biases, norms and learned tokens do not. A parameter shared by two parts is in one group.
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
                # Not by the class `nn.Linear`: layers have other classes under tensor parallelism.
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
    """Parameters and trained parameters of each part, counted for the whole model even if a rank holds a slice."""
    counts = {}
    for part in PARTS:
        sizes = [(prod(block_of(p).shape), p.requires_grad) for p in getattr(model, part).parameters()]
        counts[part] = (sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))
    return counts


def lr_multiplier(config: OptimizerConfig, step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` (0 is the first) of `steps`.

    Rises linearly over the warm-up, then falls from 1 to `final_lr` by the schedule; the last step still learns.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    shape = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.final_lr + (1 - config.final_lr) * shape


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, offloaded: bool
) -> tuple[torch.optim.Optimizer, str]:
    """The optimizer over parameter groups, and the name of its kernel for the log.

    `offloaded` means that it steps in host memory, where Apex has no kernel. Raises UserError if Apex is requested and
    cannot be used.
    """
    apex = find_apex()
    if config.kernel == "apex" and (offloaded or not apex.optimizer):
        why = "it steps on a GPU only, and the optimizer is offloaded" if offloaded else apex.missing
        raise UserError(f"optimizer.kernel: apex cannot be used: {why}")
    prefers_apex = config.kernel == "auto" and torch.cuda.is_available()
    if apex.optimizer and not offloaded and (config.kernel == "apex" or prefers_apex):
        from apex.optimizers import FusedAdam

        made = FusedAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps, adam_w_mode=True)
        return made, "Apex FusedAdam"
    fused = config.kernel != "plain"
    adamw = AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)
    return adamw, "torch AdamW, fused" if fused else "torch AdamW"


def build_muon(
    groups: list[dict[str, Any]], config: OptimizerConfig, ranks: dist.ProcessGroup | None
) -> tuple[torch.optim.Optimizer, str]:
    """Muon for the groups of matrices and AdamW for the others, and its name, for the log.

    `ranks` hold whole matrices and the same gradients; they share Muon's work.
    """
    groups = [{**group, "matrices": group["name"].endswith(".matrices")} for group in groups]
    fused = config.kernel != "plain"
    made = Muon(groups, ranks, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)
    return made, "Muon for matrices, torch AdamW for the rest"

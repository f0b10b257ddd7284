"""AdamW in one kernel for many tensors: Apex's where it is installed, else torch's fused one."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch

from onediff.config.training import OptimizerConfig
from onediff.errors import UserError
from onediff.model.apex import find_apex


class AdamW(torch.optim.AdamW):
    """torch's own. Its step is taken out of the wrapper that imports torch's compiler, 1.5 s, to tell it to stay away."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, offloaded: bool
) -> tuple[torch.optim.Optimizer, str]:
    """The optimizer over parameter groups, and in words which kernel it uses, for the log.

    `offloaded` says that it will step in the host's memory, where Apex has no kernel. Raises UserError when Apex is asked
    for and cannot be used.
    """
    apex = find_apex()
    if config.kernel == "apex" and (offloaded or not apex.optimizer):
        why = "it steps on a GPU only, and the optimizer is offloaded" if offloaded else apex.missing
        raise UserError(f"optimizer.kernel: apex cannot be used: {why}")
    gpu = torch.cuda.is_available()
    if apex.optimizer and not offloaded and (config.kernel == "apex" or (config.kernel == "auto" and gpu)):
        from apex.optimizers import FusedAdam

        made = FusedAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps, adam_w_mode=True)
        return made, "Apex FusedAdam"
    # On the CPU the plain one is the default: its steps are small beside the rest.
    fused = config.kernel == "torch" or (config.kernel == "auto" and gpu)
    adamw = AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)
    return adamw, "torch AdamW, fused" if fused else "torch AdamW"

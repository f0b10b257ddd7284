"""The global gradient norm at every ZeRO stage. If it is not finite, the step is skipped without a trace."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def keep_gradient_norm(engine: Any) -> None:
    """Makes all stages of DeepSpeed 0.19 behave the same.

    `engine.get_global_grad_norm()` is infinite if any gradient on any rank is not finite. The step then changes neither
    weights nor moments nor step counts, and the next one starts without gradients. Every stage synchronises on the norm.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 0 and not hasattr(optimizer, "_global_grad_norm"):
        _step_where_finite(engine)
    elif engine.mpu is not None and engine.mpu.get_tensor_model_parallel_world_size() > 1:
        _count_all(engine, optimizer)
    if getattr(optimizer, "cpu_offload", False):
        _forget_skipped(optimizer)


def _step_where_finite(engine: Any) -> None:
    """For stage 0 in fp32, where DeepSpeed has no optimizer of its own; it clips, discards the norm, and steps."""
    from deepspeed.runtime.utils import clip_grad_norm_

    optimizer, take_step = engine.optimizer, engine.optimizer.step
    skips = False

    def clip() -> None:
        nonlocal skips
        gradients = {p: p.grad for p in engine.module.parameters() if p.grad is not None}
        uncounted = _uncounted(engine, gradients.items())
        norm = clip_grad_norm_(list(gradients), engine.gradient_clipping(), mpu=engine.mpu)
        engine._global_grad_norm = norm = _with(norm, uncounted, engine)
        # DeepSpeed reads `overflow` to see whether the step was skipped.
        skips = optimizer.overflow = not bool(torch.isfinite(norm))

    def step(closure: Any = None) -> None:
        nonlocal skips
        if not skips:
            take_step(closure)
        # Steps without a prior `clip` always run: loading a checkpoint creates the optimizer's moments by such a step.
        skips = False

    engine.clip_fp32_gradients, optimizer.step = clip, step


def _count_all(engine: Any, optimizer: Any) -> None:
    """Under tensor parallelism, makes the norm infinite if any gradient is not finite (stage 0 in bf16 always checks)."""
    if hasattr(optimizer, "scaled_global_norm"):  # stages 1 and 2
        of_stage_two = optimizer.scaled_global_norm
        optimizer.scaled_global_norm = lambda norm_type=2: _with(
            of_stage_two(norm_type), _of_zero(engine, optimizer, optimizer.params_in_partition), engine
        )
    elif hasattr(optimizer, "_get_norm_groups"):  # stage 3
        of_groups = optimizer._get_norm_groups
        optimizer._get_norm_groups = lambda: _with(
            torch.stack(of_groups()), _of_zero(engine, optimizer, optimizer.fp16_groups), engine
        ).unbind()
    elif hasattr(optimizer, "get_grads_for_norm"):  # stage 1 in bf16
        of_norm = optimizer.get_grads_for_norm

        def gradients(for_clipping: bool = False) -> Any:
            if for_clipping:
                return of_norm(for_clipping)
            counted, experts = of_norm()
            both = zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True)
            pairs = (pair for group, found in both for pair in zip(group, found, strict=True))
            return [*counted, _with(torch.zeros(1, device=engine.device), _uncounted(engine, pairs), engine)], experts

        optimizer.get_grads_for_norm = gradients


def _of_zero(engine: Any, optimizer: Any, groups: list[list[Any]]) -> list[Tensor]:
    """The uncounted gradients in this rank's share of `groups`, or their norms if they are in host memory."""
    pairs: list[tuple[Any, Tensor]] = []
    for number, group in enumerate(groups):
        if getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False):
            norms = optimizer.norm_for_param_grads
            pairs += [(p, norms[key]) for p in group if (key := optimizer.get_param_id(p)) in norms]
        else:
            pairs += zip(group, optimizer.averaged_gradients[number], strict=True)
    return _uncounted(engine, pairs)


def _uncounted(engine: Any, pairs: Iterable[tuple[Any, Tensor]]) -> list[Tensor]:
    """The gradients that DeepSpeed leaves out of the norm.

    A parameter that is not split over a tensor group counts only on the group's first rank, although each rank updates it.
    """
    if engine.mpu is None or engine.mpu.get_tensor_model_parallel_rank() == 0:
        return []
    return [gradient for p, gradient in pairs if not getattr(p, "tensor_model_parallel", False)]


def _with(norm: Tensor, uncounted: list[Tensor], engine: Any) -> Tensor:
    """`norm`, or infinity if any rank has an uncounted gradient that is not finite. Collective under tensor parallelism."""
    if engine.mpu is None or engine.mpu.get_tensor_model_parallel_world_size() == 1:
        return norm
    finite = torch.ones((), device=engine.device)
    for gradient in uncounted:
        finite = finite * gradient.isfinite().all().to(finite)
    dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return torch.where(finite.to(norm.device) > 0, norm, math.inf)


def _forget_skipped(optimizer: Any) -> None:
    """For stages 1 and 2 with offload, where DeepSpeed would add the next gradients to those of a skipped step."""
    reset = optimizer.reset_cpu_buffers

    def reset_all() -> None:
        reset()
        if optimizer.overflow:
            for group in optimizer.averaged_gradients:
                optimizer.averaged_gradients[group] = None

    optimizer.reset_cpu_buffers = reset_all

"""Finds the fastest settings that fit: T, ZeRO stage, node copies, offload, and micro-batch and checkpointing by phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onediff.config.parallel import ranks_within
from onediff.config.run import RunConfig
from onediff.config.training import Checkpointing
from onediff.errors import UserError
from onediff.plan.architecture import sizes_of
from onediff.plan.gpus import Gpu
from onediff.plan.phase import PhasePlan, check_cut, plan_phase
from onediff.plan.setup import Setup

MODES: tuple[Checkpointing, ...] = ("none", "selective", "full")


def suggest(config: RunConfig, gpu: Gpu, gpus: int, per_node: int, text: int) -> list[PhasePlan]:
    """The plan of each phase under the settings with the lowest expected time for all phases together.

    T, stage and offload are settings of the run, so they are the same for every phase. Raises UserError if nothing fits.
    """
    best: list[PhasePlan] = []
    least = float("inf")
    for settings in _settings(config, gpus, per_node):
        if best and settings.offload_optimizer != "none":
            break  # offloading is never faster than a setting that fits without it
        plans = []
        for name in config.phases:
            plan = _fastest(config, name, settings, gpu, text)
            if plan is None:
                break
            plans.append(plan)
        if len(plans) < len(config.phases):
            continue
        seconds = sum((plan.rows.steps or 1) * plan.duration.expected for plan in plans)
        if seconds < least * 0.999:  # on a tie, the first one is the simplest
            best, least = plans, seconds
    if not best:
        raise UserError(
            f"--suggest: no setting fits {gpus} × {gpu.name} and divides the global batch; use more or larger GPUs, "
            "a smaller data.max_tokens, or another global_batch"
        )
    return best


def _settings(config: RunConfig, gpus: int, per_node: int) -> Iterator[Setup]:
    """The settings of a whole run, simplest first; offloading comes last."""
    sizes = sizes_of(config.model)
    start = Setup(
        world=gpus,
        per_node=min(per_node, gpus),
        tensor=1,
        stage=0,
        micro_batch=1,
        global_batch=1,
        bf16=config.training.precision == "bf16",
        checkpointing="none",
        loss_chunk=config.training.loss_chunk,
        sequence=config.parallel.sequence,
        context=config.parallel.context,
        save_in_background=config.training.save_in_background,
        peer_copies=config.training.peer_copies is not None,
    ).with_keys_of(config.parallel)
    for offload in ("none", "cpu"):
        for tensor in range(1, min(per_node, gpus) // start.context + 1):
            if gpus % (tensor * start.context) or per_node % (tensor * start.context):
                continue
            try:
                check_cut(sizes, tensor, start.context)
            except UserError:
                continue
            for stage in (0, 1, 2, 3):
                if offload != "none" and stage == 0:
                    continue
                setup = replace(start, tensor=tensor, stage=stage, offload_optimizer=offload)
                yield setup
                if stage == 3 and start.world > per_node > tensor and start.world % per_node == 0:
                    yield replace(setup, sharing=ranks_within("node", tensor, start.world, per_node))


def _fastest(config: RunConfig, name: str, settings: Setup, gpu: Gpu, text: int) -> PhasePlan | None:
    """The fastest micro-batch and checkpointing for a phase that fit under these settings, or None."""
    rows = config.phases[name].global_batch
    if rows % settings.data:
        return None
    share = rows // settings.data
    best: PhasePlan | None = None
    for mode in MODES:
        for micro_batch in (n for n in range(1, share + 1) if share % n == 0 and n <= 64):
            setup = replace(settings, checkpointing=mode, micro_batch=micro_batch, global_batch=rows)
            plan = plan_phase(config, name, setup, gpu, text)
            if not plan.fits:
                break
            if best is None or plan.duration.expected < best.duration.expected * 0.999:
                best = plan
    return best

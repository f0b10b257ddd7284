"""A plan as text for the terminal and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from onediff.plan.gpus import Gpu
from onediff.plan.memory import KINDS
from onediff.plan.phase import PhasePlan
from onediff.plan.setup import Setup

UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
"""Units for FLOPs; the first one that the largest part reaches is used."""


def lines(plan: PhasePlan, gpu: Gpu) -> Iterator[str]:
    """The plan of one phase."""
    setup, memory, traffic, time = plan.setup, plan.memory, plan.traffic, plan.duration
    yield f"phase {plan.name}"
    yield f"  {'as':<12}{setup.world} × {gpu.name}, {_how(setup)}"
    most = max(flops.model for flops in plan.flops.values())
    scale, unit = next(((size, name) for size, name in UNITS if most >= size), UNITS[-1])
    for part, (total, trained) in plan.parameters.items():
        flops = plan.flops[part]
        yield (
            f"  {part:<12}{total / 1e6:>9,.1f} M parameters, {trained / 1e6:>9,.1f} M train; {unit} per step: "
            f"{flops.forward / scale:.3f} forward, {flops.backward / scale:.3f} backward"
            + (f", {flops.recompute / scale:.3f} recomputed" if flops.recompute else "")
        )
    kinds = ", ".join(f"{kind} {_gb(getattr(memory, kind))}" for kind in KINDS)
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    yield f"  {'memory':<12}{_gb(memory.gpu)} GB per GPU of {_gb(plan.usable_bytes)} usable: {verdict}"
    yield f"  {'':<12}peak {memory.moment}: {kinds}"
    if memory.host:
        yield f"  {'host':<12}{_gb(memory.host * setup.per_node)} GB per node for offloaded state"
    if memory.host_copy:
        copied = _gb(memory.host_copy * setup.per_node)
        yield f"  {'host':<12}{copied} GB per node to write a checkpoint in the background"
    if memory.peer_copies:
        held = _gb(memory.peer_copies * setup.per_node)
        yield f"  {'host':<12}{held} GB per node for copies in memory (training.peer_copies)"
    if memory.nvme:
        yield f"  {'nvme':<12}{_gb(memory.nvme * setup.per_node)} GB of files per node"
    in_groups = f"tensor group {_gb(traffic.tensor)} GB"
    in_groups += f", context group {_gb(traffic.context)} GB" if setup.context > 1 else ""
    between = traffic.tensor_between + traffic.context_between
    inside = traffic.data_inside + traffic.tensor + traffic.context - between
    yield (
        f"  {'traffic':<12}per GPU and step: weights {_gb(traffic.gather)} GB, gradients {_gb(traffic.reduce)} GB, "
        f"{in_groups}; within nodes {_gb(inside)} GB, between nodes {_gb(traffic.data_between + between)} GB"
    )
    yield (
        f"  {'step':<12}{_number(time.expected)} s expected, {_range(time.best, time.worst)} s; MFU "
        f"{100 * plan.mfu[0]:.2g} to {100 * plan.mfu[1]:.2g} %; compute {_range(*time.compute)} s, "
        f"links {_range(*time.links)} s" + (f", host {_range(*time.host)} s" if time.host[1] else "")
    )
    if plan.hours is None or plan.rows.steps is None:
        yield f"  {'length':<12}unknown: {plan.rows.steps_from}"
    else:
        size, unit = _unit(plan.hours)
        usual, low, high = (plan.rows.steps * seconds / size for seconds in (time.expected, time.best, time.worst))
        yield (
            f"  {'length':<12}{plan.rows.steps:,} steps (from {plan.rows.steps_from}): {usual:.1f} {unit}, {low:.1f} to "
            f"{high:.1f}; {_number(plan.hours * setup.world)} GPU-hours"
        )
    images = plan.images_per_second
    yield f"  {'loaders':<12}must deliver {images:,.0f} images/s in total, {images / setup.nodes:,.0f} per node"
    yield f"  {'checkpoint':<12}{_gb(plan.checkpoint_bytes)} GB"


def _how(setup: Setup) -> str:
    """The settings in one line."""
    how = f"T = {setup.tensor}, " + (f"C = {setup.context}, " if setup.context > 1 else "") + f"D = {setup.data}"
    how += f", ZeRO {setup.stage}, micro-batch {setup.micro_batch} × {setup.accumulation}"
    how += f", {'bf16' if setup.bf16 else 'fp32'}, checkpointing {setup.checkpointing}"
    how += f", a copy of the weights on each node over {setup.sharing} ranks" if setup.sharing else ""
    how += ", sequence parallel" if setup.sequence and setup.tensor > 1 else ""
    for what, where in (("optimizer", setup.offload_optimizer), ("weights", setup.offload_parameters)):
        how += f", {what} on {where}" if where != "none" else ""
    return how


def totals(plans: list[PhasePlan]) -> str:
    """Hours and GPU-hours of all phases together."""
    known = [plan for plan in plans if plan.hours is not None]
    hours = sum(plan.hours or 0 for plan in known)
    note = "" if len(known) == len(plans) else f", without {len(plans) - len(known)} phase(s) of unknown length"
    size, unit = _unit(hours)
    gpu_hours = sum((plan.hours or 0) * plan.setup.world for plan in known)
    return f"total {hours * 3600 / size:.1f} {unit}, {_number(gpu_hours)} GPU-hours{note}"


def command(plans: list[PhasePlan], config: str, overrides: Sequence[str]) -> str:
    """The command that runs a configuration and its overrides as planned: locally, or as jobs if it needs several nodes."""
    setup = plans[0].setup
    words = [config, *overrides, *_settings(plans)]
    if setup.nodes == 1:
        return shlex.join(["onediff", "train", *words, "--processes", str(setup.world)])
    submit = shlex.join(["onediff", "launch", "submit", *words, "--nodes", str(setup.nodes)])
    return f"with --profile for a cluster with {setup.per_node} GPUs per node:\n{submit}"


def _settings(plans: list[PhasePlan]) -> list[str]:
    """The plan as overrides of a configuration."""
    setup = plans[0].setup
    words = [
        f"parallel.tensor={setup.tensor}",
        f"parallel.zero_stage={setup.stage}",
        f"parallel.shard_within={'node' if setup.sharing else 'world'}",
        f"parallel.offload_optimizer={setup.offload_optimizer}",
        f"parallel.offload_parameters={setup.offload_parameters}",
        *([f"parallel.context={setup.context}"] if setup.context > 1 else []),
    ]
    for plan in plans:
        words.append(f"phases.{plan.name}.activation_checkpointing={plan.setup.checkpointing}")
        words.append(f"phases.{plan.name}.micro_batch={plan.setup.micro_batch}")
    return words


def as_json(plan: PhasePlan) -> dict[str, Any]:
    """The whole plan in bytes, FLOPs and seconds."""
    return {
        **asdict(plan),
        "fits": plan.fits,
        "hours": plan.hours,
        "gpu_hours": None if plan.hours is None else plan.hours * plan.setup.world,
        "memory": {**asdict(plan.memory), "gpu": plan.memory.gpu},
        "duration": {**asdict(plan.duration), "expected": plan.duration.expected},
    }


def _gb(amount: float) -> str:
    """Bytes in GB."""
    return _number(amount / 1e9)


def _number(value: float) -> str:
    """Three significant digits at most; 0 only if it is less than 0.0005."""
    digits = next((digits for least, digits in ((100, 0), (1, 1), (0.1, 2), (0.0005, 3)) if value >= least), 0)
    return f"{value:,.{digits}f}"


def _range(low: float, high: float) -> str:
    """`LOW to HIGH`."""
    return f"{_number(low)} to {_number(high)}"


def _unit(hours: float) -> tuple[int, str]:
    """The unit for a readable time of that many hours: its seconds and name."""
    return (3600, "hours") if hours >= 1 else (60, "minutes") if hours >= 1 / 60 else (1, "seconds")

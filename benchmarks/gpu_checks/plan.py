"""Compares the memory and time of a step with the prediction of `onediff plan` for the same micro-batch."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from gpu_parts.measure import Setting
from gpu_parts.models import SIZES, TINY

from gpu_checks.engine import run_config, shape_of, start
from gpu_checks.outcome import NotHere, Wrong
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import create_topology
from onediff.plan.architecture import sizes_of
from onediff.plan.duration import duration_of
from onediff.plan.flops import flops_of
from onediff.plan.gpus import gpu_named, gpu_of_device
from onediff.plan.memory import memory_of
from onediff.plan.phase import setup_of
from onediff.plan.traffic import traffic_of
from onediff.plan.walk import Trained, walk

MEMORY, TIME = 0.10, 0.25
"""Maximum relative errors of a plan."""


def check(setting: Setting) -> dict[str, Any]:
    """A language model of a billion parameters, everything training, under ZeRO-3."""
    size = TINY[1] if setting.dry else SIZES[2]
    config, shape = run_config(size, setting.dry, stage=3), shape_of(size, setting.dry)
    name = torch.cuda.get_device_name() if setting.device.type == "cuda" else ""
    gpu = gpu_of_device(name) or gpu_named("h100-80g")
    setup = setup_of(config, "check", gpus=1, per_node=1)
    sizes = sizes_of(config.model)
    tape = walk(sizes, shape, Trained.of(config.phases["check"]), itemsize=setup.itemsize)
    memory = memory_of(tape, setup)
    hardware = setup.accumulation * sum(part.hardware for part in flops_of(tape, setup.checkpointing).values())
    duration = duration_of(tape, setup, traffic_of(tape, sizes, shape, setup), hardware, sizes.decoder.width, gpu)
    engine, batch = start(config, create_topology(config.parallel, initialize_distributed()), shape)
    setting.peak_gib(reset=True)
    taken = []
    for step in range(3 if setting.dry else 8):
        began = time.perf_counter()
        engine.step([batch, batch], step, 100).metrics()
        taken.append(time.perf_counter() - began)
    peak = setting.peak_gib()
    shutdown()
    found = {
        "planned_gib": memory.gpu / 2**30,
        "gib": peak,
        "planned_by_kind": {key: value / 2**30 for key, value in vars(memory).items() if isinstance(value, int)},
        "fullest": memory.moment,
        "planned_seconds": [duration.best, duration.expected, duration.worst],
        "seconds": statistics.median(taken[2:]),
    }
    if peak is None:
        raise NotHere("a CPU has no plan; the steps ran", **found)
    if name and gpu_of_device(name) is None:
        raise NotHere(f"`onediff plan` does not know {name}", **found)
    off = []
    if abs(peak / found["planned_gib"] - 1) > MEMORY:
        off.append(f"{peak:.2f} GiB, planned {found['planned_gib']:.2f}")
    if abs(found["seconds"] / duration.expected - 1) > TIME:
        off.append(f"{found['seconds']:.3f} s per step, planned {duration.expected:.3f}")
    if off:
        raise Wrong("; ".join(off), **found)
    return found

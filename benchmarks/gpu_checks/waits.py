"""How often the host waits for the device in a step, according to torch's profiler and CUDA's runtime."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import torch
from gpu_parts.measure import Setting
from gpu_parts.models import SIZES, TINY
from torch.profiler import ProfilerActivity, profile

from gpu_checks.engine import run_config, shape_of, start
from gpu_checks.outcome import NotHere, Wrong
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import create_topology

WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy HtoD (Pageable -> Device)")
MOST = {1: 3, 2: 18}
"""In a step of two micro-batches, by ZeRO stage: the table of docs/performance.md, with its eight parameter groups."""
STEPS = 3


def check(setting: Setting) -> dict[str, Any]:
    """Two micro-batches per step; the profiler's own wait at the end of its window is not counted."""
    size = TINY[1] if setting.dry else SIZES[1]
    ranks = initialize_distributed()
    found: dict[str, Any] = {}
    over = []
    for stage, most in MOST.items():
        config = run_config(size, setting.dry, stage)
        engine, batch = start(config, create_topology(config.parallel, ranks), shape_of(size, setting.dry))
        for step in range(3):
            engine.step([batch, batch], step, 100)
        counts = waits(setting, engine, batch)
        per_step = sum(counts.values()) / STEPS
        found[f"stage {stage}"] = {name: count / STEPS for name, count in counts.items()}
        if per_step > most:
            over.append(f"stage {stage}: {per_step:.1f} per step, not {most}")
        engine.close()
        del engine
        gc.collect()
    shutdown()
    if setting.device.type != "cuda":
        raise NotHere("a CPU needs no waiting for; the steps ran", **found)
    if over:
        raise Wrong("; ".join(over), **found)
    return found


def waits(setting: Setting, engine: Any, batch: Any) -> Counter[str]:
    """The waits in `STEPS` steps, by event."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.device.type == "cuda" else [])]
    setting.wait()
    with profile(activities=activities) as profiler, torch.profiler.record_function("steps"):
        for step in range(STEPS):
            engine.step([batch, batch], step + 3, 100)
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    steps = next(event for event in events if event.name() == "steps")
    first, last = steps.start_ns(), steps.start_ns() + steps.duration_ns()
    return Counter(event.name() for event in events if event.name() in WAITING and first <= event.start_ns() <= last)

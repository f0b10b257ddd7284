"""The overhead of this project's training step over a plain implementation of the same arithmetic, in one process.

  python benchmarks/engine.py --json benchmarks/results/engine.json

Two comparisons, each on the demo's model with the same batch, weights and threads: a step of `onediff.training.engine` at
ZeRO stage 0 beside a bare torch loop (forward, backward, clip, AdamW), and at stage 3 beside DeepSpeed's own minimal
example (`engine(batch)`, `engine.backward`, `engine.step`) with the same DeepSpeed settings. Both sides of a comparison
alternate step by step, so that other work on the machine affects both equally. The ratio is the median over pairs of steps,
in processor time (`time.process_time`); wall-clock seconds are also printed. The target is at most 1.03.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from plan import batch_of

from onediff.config.compose import load_run
from onediff.config.run import RunConfig
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import create_topology
from onediff.plan.walk import Shape
from onediff.training.engine import Engine, deepspeed_config
from onediff.training.optimizer import freeze, lr_multiplier, parameter_groups
from onediff.training.start import built

Step = Callable[[int], None]


def ours(config: RunConfig, phase: str, topology: Any, batch: Any, steps: int) -> Step:
    """This project's engine."""
    torch.manual_seed(0)
    model = built(config, config.model, phase, topology, filled_later=False)
    engine = Engine(model, config, config.phases[phase], topology)

    def step(number: int) -> None:
        made: Any = engine.step([batch], number, steps)
        if hasattr(made, "metrics"):
            made.metrics()

    return step


def bare(config: RunConfig, phase: str, topology: Any, batch: Any, steps: int) -> Step:
    """Torch alone."""
    torch.manual_seed(0)
    model = built(config, config.model, phase, topology, filled_later=False)
    settings = config.phases[phase]
    freeze(model, settings)
    model.train()
    groups = parameter_groups(model, settings, config.optimizer)
    optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps)
    trained = [parameter for group in groups for parameter in group["params"]]

    def step(number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_multiplier(config.optimizer, number, steps)
        loss = model(batch).sum() / batch.targets
        loss.backward()
        float(torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip))
        optimizer.step()
        optimizer.zero_grad()
        float(loss)

    return step


def minimal(config: RunConfig, phase: str, topology: Any, batch: Any, steps: int) -> Step:
    """DeepSpeed as its "Getting started" shows it."""
    import deepspeed

    torch.manual_seed(0)
    model = built(config, config.model, phase, topology, filled_later=False)
    settings = config.phases[phase]
    freeze(model, settings)
    groups = parameter_groups(model, settings, config.optimizer)
    optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps)
    trained = sum(
        getattr(parameter, "ds_numel", parameter.numel()) for group in groups for parameter in group["params"]
    )
    told = copy.deepcopy(deepspeed_config(config, settings, 1, trained))
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=told, dist_init_required=False)[0]
    engine.train()

    def step(number: int) -> None:
        loss = engine(batch).sum() / batch.targets
        engine.backward(loss)
        engine.step()
        float(loss)

    return step


def compared(first: Step, second: Step, steps: int, warm: int) -> dict[str, float]:
    """Runs steps of both sides in turn, alternating which goes first."""
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    sides = [("ours", first), ("theirs", second)]
    for number in range(warm + steps):
        for name, step in sides if number % 2 else sides[::-1]:
            began = time.process_time(), time.perf_counter()
            step(number)
            took = time.process_time() - began[0], time.perf_counter() - began[1]
            if number >= warm:
                seconds[name].append(took)
    ratios = [[a[i] / b[i] for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)] for i in (0, 1)]
    return {
        "ours_seconds": statistics.median(took[0] for took in seconds["ours"]),
        "theirs_seconds": statistics.median(took[0] for took in seconds["theirs"]),
        "ratio": statistics.median(ratios[0]),
        "ratio_by_the_clock": statistics.median(ratios[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="measured steps per side")
    parser.add_argument("--rows", type=int, default=32, help="rows of the batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    initialize_distributed()
    found: dict[str, Any] = {
        "machine": machine("torch", "deepspeed"),
        "rows": args.rows,
        "threads": args.threads,
        "steps": args.steps,
    }
    batch_size = [f"phases.two.global_batch={args.rows}", f"phases.two.micro_batch={args.rows}"]
    for name, stage, other in (("bare torch", 0, bare), ("DeepSpeed, ZeRO 3", 3, minimal)):
        config = load_run("configs/demo.yaml", ["model=models/tiny", f"parallel.zero_stage={stage}", *batch_size])
        topology = create_topology(config.parallel, initialize_distributed())
        batch = batch_of(config, Shape(args.rows, 96, 2 * args.rows, args.rows, 40 * args.rows), 16)
        sides = [make(config, "two", topology, batch, args.steps + 5) for make in (ours, other)]
        found[name] = compared(*sides, args.steps, warm=4)
        print(f"{name:<20}" + "  ".join(f"{key} {value:.4f}" for key, value in found[name].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    shutdown()


if __name__ == "__main__":
    main()

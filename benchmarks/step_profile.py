"""Plots where the time of an optimizer step goes, by stage of the step and kind of operator.

  python benchmarks/step_profile.py --image docs/step_profile.png --json benchmarks/results/step_profile.json

Profiles the demo's model in phases one and two in this project's engine (ZeRO-3, one process), with torch's profiler. Bars
are milliseconds of a mean step, each operator's own time; on a GPU, the kernels' time. The profiler makes small operators
look slower than they are, so read the image for its proportions.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from machine import machine

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from plan import batch_of
from torch.profiler import ProfilerActivity, profile, record_function

from onediff.config.compose import load_run
from onediff.parallel.ranks import initialize_distributed, shutdown
from onediff.parallel.topology import create_topology
from onediff.plan.walk import Shape
from onediff.training.engine import Engine
from onediff.training.start import built

STAGES = ("forward", "backward", "optimizer step")
KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "baddbmm", "convolution", "conv"),
    "attention": ("scaled_dot_product", "_flash", "_efficient"),
    "norms and softmax": ("norm", "rsqrt", "softmax", "mean", "pow"),
    "activation functions": ("silu", "gelu", "sigmoid"),
    "moving values": ("copy", "clone", "index", "cat", "select", "slice", "gather", "scatter", "zero", "fill", "empty"),
    "arithmetic": ("mul", "add", "sub", "div", "sum", "neg", "lerp", "sqrt", "addcmul", "addcdiv"),
}

REST = "Python, autograd, DeepSpeed"


def kind_of(name: str) -> str:
    """The kind of an operator, by its name; the rest is time of the frameworks themselves."""
    plain = name.removeprefix("aten::")
    for kind, parts in KINDS.items():
        if name.startswith("aten::") and any(part in plain for part in parts):
            return kind
    return REST


def staged(engine: Any) -> None:
    """Marks the stages of a step for the profiler."""
    for stage, method in zip(STAGES, ("forward", "backward", "step"), strict=True):
        own = getattr(engine.sharded.deepspeed, method)

        def spanned(*args: Any, _own: Any = own, _stage: str = stage, **kwargs: Any) -> Any:
            with record_function(f"stage: {_stage}"):
                return _own(*args, **kwargs)

        setattr(engine.sharded.deepspeed, method, spanned)


def profiled(phase: str, rows: int, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a mean step by stage and kind."""
    sizes = [f"phases.{phase}.{key}={rows}" for key in ("global_batch", "micro_batch")]
    config = load_run("configs/demo.yaml", ["model=models/tiny", *sizes])
    topology = create_topology(config.parallel, initialize_distributed())
    model = built(config, config.model, phase, topology, filled_later=False)
    engine = Engine(model, config, config.phases[phase], topology)
    staged(engine)
    batch = batch_of(config, Shape(rows, 96, 2 * rows, rows, 40 * rows), model.vision.tokens)
    for number in range(2):
        engine.step([batch], number, steps + 2).metrics()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiler:
        for number in range(steps):
            engine.step([batch], number + 2, steps + 2).metrics()
    events = profiler.events() or []
    spans = [(event.time_range, event.name.removeprefix("stage: ")) for event in events if event.name in MARKS]
    found: dict[str, dict[str, float]] = {stage: defaultdict(float) for stage in (*STAGES, "between")}
    for event in events:
        own = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        began = event.time_range.start
        stage = next((name for span, name in spans if span.start <= began <= span.end), "between")
        found[stage][kind_of(event.name)] += own / 1e3 / steps
    return {stage: dict(kinds) for stage, kinds in found.items()}


MARKS = {f"stage: {stage}" for stage in STAGES}


def draw(figures: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Draws one bar per phase and stage, stacked by kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(f"phase {phase}: {stage}", stages[stage]) for phase, stages in figures.items() for stage in STAGES]
    image, axes = pyplot.subplots(figsize=(9, 0.5 * len(bars) + 1.2))
    left = [0.0] * len(bars)
    for kind in (*KINDS, REST):
        widths = [kinds.get(kind, 0.0) for _, kinds in bars]
        axes.barh(range(len(bars)), widths, left=left, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of one step")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4, fontsize="small", frameon=False)
    image.tight_layout()
    image.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    figures = {phase: profiled(phase, args.rows, args.steps) for phase in ("one", "two")}
    shutdown()
    for phase, stages in figures.items():
        total = sum(sum(kinds.values()) for kinds in stages.values())
        print(f"phase {phase}: {total:.0f} ms per step of {args.rows} pairs")
        for stage, kinds in stages.items():
            shares = ", ".join(
                f"{kind} {ms / total:.0%}" for kind, ms in sorted(kinds.items(), key=lambda item: -item[1])[:4]
            )
            print(f"  {stage:<15} {sum(kinds.values()) / total:5.0%}   {shares}")
    if args.image:
        draw(figures, args.image)
    if args.json:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        about = machine("torch", "deepspeed") | {"device": device}
        args.json.write_text(
            json.dumps({"machine": about, "rows": args.rows, "milliseconds": figures}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

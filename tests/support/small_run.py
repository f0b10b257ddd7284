"""A small real run for the tests: rendered shards, the demo's configuration with few steps, losses from the journal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import forked

from onediff.config.compose import load_run
from onediff.config.run import RunConfig

PHASES = ("warm-up", "one", "two")
SECONDS = 600
"""Longest time that one command may take."""


def render(folder: Path, pairs: int = 60, singles: int = 60) -> Path:
    """Two small data sets, pairs and singles, as `onediff data render` writes them."""
    sizes = ["--pairs", str(pairs), "--singles", str(singles), "--split-sizes", "train=0.8,test=0.2"]
    done = onediff(["data", "render", "--out", str(folder), *sizes, "--processes", "1"])
    assert done.returncode == 0, done.stderr
    return folder


def overrides(data: Path, steps: int, rows: int = 4, **more: object) -> list[str]:
    """The demo's configuration at the size of a test: `steps` of `rows` rows in every phase, fp32, no workers.

    Its model is the one that starts from nothing; the demo's own tower would have to be trained first.
    """
    values: dict[str, object] = {
        "model": "models/tiny",
        "data.sets.pairs": data / "pairs",
        "data.sets.singles": data / "singles",
        "data.workers": 0,
        "training.sample_captions": 0,
        "evaluation.max_new_tokens": 8,
        "tracking.live": False,
        # Half the demo's model: every part has two layers.
        "model.vision.config.num_hidden_layers": 2,
        "model.vision.levels": "[1, 2]",
        "model.delta.layers": 2,
        "model.language.config.num_hidden_layers": 2,
        # Where a gradient is nothing but rounding, AdamW with its default of 1e-8 takes whole steps in its direction.
        "optimizer.eps": 1e-6,
    }
    for phase in PHASES:
        values |= {f"phases.{phase}.steps": steps, f"phases.{phase}.global_batch": rows}
        values |= {f"phases.{phase}.micro_batch": 2, f"phases.{phase}.checkpoint_every": 5}
        # The demo sets stage and optimizer for single phases; here all follow `parallel.zero_stage`.
        values[f"phases.{phase}.parallel.zero_stage"] = "null"
        values[f"phases.{phase}.matrices"] = "adamw"
    return [f"{key}={value}" for key, value in {**values, **more}.items()]


def config(data: Path, steps: int, **more: object) -> RunConfig:
    """The same as an object."""
    return load_run("configs/demo.yaml", overrides(data, steps, **more))


def onediff(
    words: list[str], cwd: Path | None = None, seconds: float = SECONDS, java: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command `onediff` to its end, with its output; in a fresh interpreter where it is given variables.

    `evaluate` finds Java only where a test asks for it: METEOR takes 12 s of a processor to start.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if words[0] == "evaluate" and not java:
        variables |= {"PATH": "", "JAVA_HOME": ""}
    if not environment:
        return forked.run(["-m", "onediff", *words], variables, seconds, cwd)
    command = [sys.executable, "-m", "onediff", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=cwd, check=False, env=variables)


def train(run: Path, data: Path, steps: int, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
    """`onediff train` of the demo's configuration at the size of a test."""
    return onediff(["train", "configs/demo.yaml", *overrides(data, steps, **more), "--run", str(run), *words])


def metrics(run: Path, phase: str, name: str = "loss") -> dict[int, float]:
    """A metric of a phase by step, as the journal holds it; of a step done twice, the later."""
    found = {}
    for line in (run / "tracking" / f"phase-{phase}.jsonl").read_text().splitlines():
        record = json.loads(line)
        if name in record.get("metrics", {}):
            found[record["step"]] = record["metrics"][name]
    return found

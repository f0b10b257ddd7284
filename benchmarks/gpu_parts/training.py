"""Runs `onediff train` on shards from `onediff data render`, and reads the metrics from its journal."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from gpu_parts.measure import Record
from gpu_parts.models import Size, model_config

PHASE = "bench"


def onediff(words: list[str], seconds: float) -> None:
    """Runs the command. Raises RuntimeError with its last lines if it fails, TimeoutExpired if it takes too long."""
    done = subprocess.run(
        [sys.executable, "-m", "onediff", *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(HOUSE), os.environ.get("PYTHONPATH")]))},
        check=False,
    )
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise RuntimeError(f"onediff {words[0]} ended with {done.returncode}: {' | '.join(said[-3:])}")


HOUSE = Path(__file__).resolve().parents[2]


def shards(folder: Path, size: Size, dry: bool, pairs: int) -> Path:
    """Pairs of scenes at the tower's size, as JPEG."""
    pixels = model_config(size, dry).vision.image.size
    words = ["data", "render", "--out", str(folder), "--pairs", str(pairs), "--singles", "0"]
    onediff([*words, "--split-sizes", "train=1", "--size", str(pixels), "--jpeg", "90"], 300)
    return folder / "pairs"


def write_config(
    file: Path,
    data: Path,
    size: Size,
    dry: bool,
    *,
    rows: int,
    steps: int,
    ranks: int,
    tensor: int = 1,
    training: dict[str, Any],
) -> Path:
    """A run of one phase: packed rows under ZeRO-3, two micro-batches of `rows` per rank and step."""
    phase = {
        "mix": {"pairs": 1},
        "train": list(size.trains),
        "steps": steps,
        "micro_batch": rows,
        "global_batch": 2 * rows * ranks // tensor,
        "pack": 512 if dry else 4096,
        "checkpoint_every": max(1, steps // 2),
    }
    config = {
        "name": "bench",
        "model": model_config(size, dry).model_dump(mode="json"),
        "data": {"sets": {"pairs": str(data)}, "max_tokens": 256 if dry else 2048, "workers": 0 if dry else 6},
        "training": {"precision": "bf16", "sample_captions": 0, **training},
        "phases": {PHASE: phase},
        "parallel": {"zero_stage": 3, "tensor": tensor},
        "tracking": {"live": False},
    }
    file.write_text(yaml.safe_dump(config))
    return file


def metrics(run: Path) -> dict[int, dict[str, float]]:
    """Every metric of the phase by step; for a repeated step, the later value."""
    found: dict[int, dict[str, float]] = {}
    for line in (run / "tracking" / f"phase-{PHASE}.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "metrics" in record:
            found.setdefault(record["step"], {}).update(record["metrics"])
    return found


def figures(run: Path, skip: int) -> Record:
    """Medians over the steps after the first `skip`."""
    steps = metrics(run)
    late = [values for step, values in steps.items() if step > skip]

    def median(name: str) -> float | None:
        values = [one[name] for one in late if name in one]
        return statistics.median(values) if values else None

    peaks = [one["memory/peak_gib"] for one in steps.values() if "memory/peak_gib" in one]
    return {
        "pairs_per_second": median("samples_per_second"),
        "tokens_per_second": median("tokens_per_second"),
        "step_seconds": median("step_seconds"),
        "tflops": median("tflops_per_rank"),
        "mfu": median("mfu"),
        "peak_gib": max(peaks, default=None),
        "data_wait_share": median("data_wait_share"),
        "last_loss": steps[max(steps)]["loss"],
    }

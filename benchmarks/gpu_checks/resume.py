"""`onediff train` in deterministic mode, stopped halfway and resumed, gives the same losses, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_parts.measure import Setting
from gpu_parts.models import TINY
from gpu_parts.training import PHASE, metrics, onediff, shards, write_config

from gpu_checks.outcome import Wrong

STEPS = 8


def check(setting: Setting) -> dict[str, Any]:
    """Packed rows in bf16 under ZeRO-3, on two GPUs if there are two; resumes from the checkpoint of step 4."""
    ranks = 2 if setting.device.type == "cuda" and torch.cuda.device_count() > 1 else 1
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = shards(place / "data", TINY[1], dry=True, pairs=64)
        training = {"deterministic": True}
        file = write_config(
            place / "run.yaml", data, TINY[1], dry=True, rows=2, steps=STEPS, training=training, ranks=ranks
        )
        words = ["train", str(file), "--processes", str(ranks)]
        limit = setting.left if setting.device.type == "cuda" else 900
        onediff([*words, "--run", str(place / "whole")], limit)
        half = shutil.copytree(place / "whole", place / "half")
        shutil.rmtree(half / "checkpoints" / f"phase-{PHASE}" / f"step-{STEPS:08d}")
        (half / f"phase-{PHASE}" / "finished.json").unlink()
        onediff([*words, "--run", str(half), "--resume"], limit)
        whole, resumed = metrics(place / "whole"), metrics(half)
        named = ("loss", "grad_norm")
        pairs = {step: [(whole[step][n], resumed[step][n]) for n in named] for step in range(STEPS // 2 + 1, STEPS + 1)}
        goes_on = (half / "logs" / "train.rank0.log").read_text().count("continues from step")
    found = {"losses": [whole[step]["loss"] for step in sorted(whole)], "ranks": ranks}
    if not goes_on:
        raise Wrong("the second run did not resume", **found)
    if off := {step: values for step, values in pairs.items() if any(a != b for a, b in values)}:
        raise Wrong(f"steps {sorted(off)} differ", **found, differ={str(step): values for step, values in off.items()})
    return found

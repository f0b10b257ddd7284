"""Two phases of a small run on many ranks, compared with the same run on one rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from places import SUPPORT
from processes import run_ranks
from small_run import metrics

from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import latest_checkpoint, read_weights

WORKER = SUPPORT / "equality_worker.py"
PHASES = ("one", "two")


def configuration(folder: Path, steps: int, rows: int, pack: int | None) -> Path:
    """The demo's model in the paper's two phases, with `rows` rows per step."""
    phase = {"steps": steps, "global_batch": rows, "micro_batch": 1, "pack": pack, "checkpoint_every": 1000}
    values = {
        "name": "equality",
        "model": "models/tiny",
        "data": "data/scenes",
        # Where a gradient is nothing but rounding, AdamW with its default of 1e-8 takes whole steps in its direction.
        "optimizer": {"lr": 1e-5, "eps": 1e-6},
        "training": {"precision": "fp32", "sample_captions": 0},
        "phases": {
            "one": {**phase, "mix": {"singles": 1}, "couple": True, "train": ["delta", "projector"]},
            "two": {**phase, "mix": {"pairs": 1, "singles": 1}},
        },
        "tracking": {"live": False},
    }
    path = folder / "equality.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def overrides(data: Path) -> list[str]:
    """Overrides with the location of the data, which the ranks read themselves."""
    return [f"data.sets.{name}={data / name}" for name in ("pairs", "singles")] + ["data.workers=0"]


def run(
    config: Path,
    runs: Path,
    world: int,
    words: list[str],
    stages: list[int],
    per_node: int | None = None,
    **job: object,
) -> None:
    """The run on `world` ranks, at each ZeRO stage one after the other, in `runs/<stage>`."""
    job = {"stages": stages, "overrides": words, **job}
    run_ranks(WORKER, [str(config), str(runs), json.dumps(job)], world, timeout=3000, per_node=per_node)


def difference(found: Path, wanted: Path, phase: str, steps: int) -> dict[str, float]:
    """The largest difference of losses, gradient norms (relative) and weights. Fails if any exceeds 1e-5."""
    losses, losses_wanted = (list(metrics(run, phase).values()) for run in (found, wanted))
    assert len(losses) == steps
    assert losses == pytest.approx(losses_wanted, abs=1e-5), found
    norms, norms_wanted = (list(metrics(run, phase, "grad_norm").values()) for run in (found, wanted))
    assert norms == pytest.approx(norms_wanted, rel=1e-5), found
    weights, known = (
        dict(read_weights(latest_checkpoint(RunFolder(run).checkpoints(phase)))) for run in (found, wanted)
    )
    assert weights.keys() == known.keys()
    apart = max(float((weight - known[name]).abs().max()) for name, weight in weights.items())
    assert apart <= 1e-5, found
    return {
        "loss": max(abs(a - b) for a, b in zip(losses, losses_wanted, strict=True)),
        "norm": max(abs(a / b - 1) for a, b in zip(norms, norms_wanted, strict=True)),
        "weights": apart,
    }

"""Both phases of a whole OneDiff at every (T, D) and ZeRO stage: the same losses, gradient norms and weights."""

import json
from pathlib import Path

import pytest
import yaml
from places import SUPPORT
from processes import run_ranks
from small_run import metrics, render

from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import latest_checkpoint, read_weights

WORKER = SUPPORT / "equality_worker.py"
PHASES = ("one", "two")
STEPS = 20
# In a global batch. A trained model that reads what a random projector makes amplifies: of some rows its gradient's norm
# follows a last bit of the weights with a hundredfold of it, so that there are more rows to share the norm.
ROWS = {"demo": 4, "stories260K": 16}
TOPOLOGIES = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4))


def configuration(folder: Path, rows: int, pack: int | None) -> Path:
    """The demo's model, or the same with a real language model of 260 thousand parameters; the paper's two phases."""
    phase = {"steps": STEPS, "global_batch": rows, "micro_batch": 1, "pack": pack, "checkpoint_every": 1000}
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


def overrides(data: Path, language: Path | None) -> list[str]:
    words = [f"data.sets.{name}={data / name}" for name in ("pairs", "singles")] + ["data.workers=0"]
    if language is not None:
        # Once clipped, many of its gradients are small: where they are, steps are to be small as well.
        words += [f"model.language.name={language}", "model.language.config=null", "optimizer.eps=1e-3"]
    return words


@pytest.mark.long
@pytest.mark.parametrize("pack", [None, 256], ids=["unpacked", "packed"])
@pytest.mark.parametrize("language", ["demo", "stories260K"])
def test_both_phases_are_the_same_at_every_topology_and_stage(language, pack, real_data, tmp_path):
    rows = ROWS[language]
    data = render(tmp_path / "data", 15 * rows, 15 * rows)
    folder = None if language == "demo" else real_data / language
    config = configuration(tmp_path, rows, pack)
    reference: Path | None = None
    worst = {"loss": 0.0, "norm": 0.0, "weights": 0.0}
    for tensor, ranks in TOPOLOGIES:
        runs = tmp_path / f"{tensor}x{ranks}"
        words = overrides(data, folder) + [f"phases.{phase}.micro_batch={rows // ranks}" for phase in PHASES]
        job = {"stages": [0, 1, 2, 3], "overrides": words}
        run_ranks(WORKER, [str(tensor), str(config), str(runs), json.dumps(job)], tensor * ranks, timeout=3000)
        reference = reference or runs / "0"
        for stage in range(4):
            where = f"T={tensor} D={ranks} ZeRO-{stage}"
            for phase in PHASES:
                losses = list(metrics(runs / str(stage), phase).values())
                wanted = list(metrics(reference, phase).values())
                assert len(losses) == STEPS
                assert losses == pytest.approx(wanted, abs=1e-5), where
                norms = list(metrics(runs / str(stage), phase, "grad_norm").values())
                norms_wanted = list(metrics(reference, phase, "grad_norm").values())
                assert norms == pytest.approx(norms_wanted, rel=1e-5), where
                weights = read_weights(latest_checkpoint(RunFolder(runs / str(stage)).checkpoints(phase)))
                known = dict(read_weights(latest_checkpoint(RunFolder(reference).checkpoints(phase))))
                differences = {name: float((weight - known[name]).abs().max()) for name, weight in weights}
                assert differences.keys() == known.keys()
                assert max(differences.values()) <= 1e-5, where
                worst["loss"] = max(worst["loss"], *(abs(a - b) for a, b in zip(losses, wanted, strict=True)))
                worst["norm"] = max(worst["norm"], *(abs(a / b - 1) for a, b in zip(norms, norms_wanted, strict=True)))
                worst["weights"] = max(worst["weights"], *differences.values())
        print(f"T={tensor} D={ranks}, ZeRO 0 to 3, worst so far: {worst}", flush=True)

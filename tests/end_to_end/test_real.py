"""Real weights: SmolLM2-135M as language model, DINOv2-S as tower, tensor-parallel and data-parallel over three ranks."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
import real_models
import torch
import yaml
from small_run import metrics, onediff, render

from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import latest_checkpoint, read_weights

pytestmark = pytest.mark.real

STEPS = 50
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PHASES = ("one", "two")
HOURS = 2


@torch.no_grad()
def test_the_tower_computes_what_the_file_that_it_is_from_computes():
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator
    from transformers import Dinov2Model

    file = onnx.load(real_models.unpacked(real_models.DINOV2) / real_models.ONNX_FILE)
    model = Dinov2Model.from_pretrained(real_models.dinov2()).eval()
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    nodes, name = file.graph.node, "/backbone/encoder/layer.11/Add_1"
    del nodes[[node.name for node in nodes].index(name) + 1 :]
    file.graph.output[0].name = f"{name}_output_0"
    (expected,) = ReferenceEvaluator(file).run(None, {"input_image": pixels.numpy()})
    last = model(pixels, output_hidden_states=True).hidden_states[12]
    assert float((last - torch.from_numpy(expected)).norm() / last.norm()) < 1e-5


@torch.no_grad()
def test_the_language_model_knows_something():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_models.smollm2())
    model = AutoModelForCausalLM.from_pretrained(real_models.smollm2())
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def configuration(folder: Path, data: Path) -> Path:
    """Both phases of the paper, each of 50 steps of three rows."""
    phase = {"steps": STEPS, "global_batch": 3, "micro_batch": 1, "checkpoint_every": 1000}
    values = {
        "name": "real",
        "model": {
            "vision": {
                "name": str(real_models.dinov2()),
                "levels": [4, 8, 12],
                # Its last layer's values are 2.6, those before 0.5: image tokens then begin no smaller than words. Smaller
                # ones SmolLM2 takes for places to rest its attention on, and carries values of 20,000 there, or does not.
                "output_level": -1,
                "image": {"size": 84, **IMAGENET},
            },
            "delta": {"tokens": 8, "layers": 3, "width": 192, "heads": 4, "intermediate": 384},
            "language": {"name": str(real_models.smollm2())},
        },
        "data": {"sets": {"pairs": str(data / "pairs"), "singles": str(data / "singles")}, "workers": 0},
        # Where a gradient is nothing but rounding, AdamW with its default of 1e-8 takes whole steps in its direction.
        "optimizer": {"eps": 1e-6},
        "training": {"precision": "fp32", "sample_captions": 0},
        "phases": {
            "one": {**phase, "mix": {"singles": 1}, "couple": True, "train": ["delta", "projector"], "lr": 3e-5},
            "two": {**phase, "mix": {"pairs": 1}, "lr": 5e-6},
        },
        "tracking": {"live": False},
    }
    path = folder / "real.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_three_ranks_that_share_the_model_and_three_that_share_the_rows_have_the_same_losses(tmp_path):
    """T=3 × D=1 cuts nine heads and three key/value heads; T=1 × D=3 cuts the rows.

    SmolLM2 carries values of 25,000 along beside values of 1, so that in fp32 its losses are 2e-5 off and its gradients
    1e-4, whoever computes them. Learning rates are low enough for that not to grow. Now and then a step has a gradient
    ten times as large as its neighbours', of which less is certain: of norms the usual one counts.
    """
    data = render(tmp_path / "data", 120, 120)
    config = configuration(tmp_path, data)
    runs = {}
    for name, words in (
        ("cut", ["parallel.tensor=3", *(f"phases.{phase}.micro_batch=3" for phase in PHASES)]),
        ("copied", []),
    ):
        runs[name] = tmp_path / name
        words = ["train", str(config), *words, "--run", str(runs[name]), "--processes", "3"]
        done = onediff(words, seconds=HOURS * 3600)
        assert done.returncode == 0, done.stderr
    figures = {}
    for phase in PHASES:
        losses = {name: list(metrics(run, phase).values()) for name, run in runs.items()}
        norms = {name: list(metrics(run, phase, "grad_norm").values()) for name, run in runs.items()}
        assert len(losses["cut"]) == STEPS
        figures[phase] = {
            "first": losses["cut"][0],
            "last": losses["cut"][-1],
            "loss": max(abs(a - b) for a, b in zip(losses["cut"], losses["copied"], strict=True)),
            "norm": median(abs(a - b) / b for a, b in zip(norms["cut"], norms["copied"], strict=True)),
        }
    weights = {name: read_weights(latest_checkpoint(RunFolder(run).checkpoints("two"))) for name, run in runs.items()}
    figures["weights"] = max(
        float((a - b).abs().max()) for (_, a), (_, b) in zip(weights["cut"], weights["copied"], strict=True)
    )
    print(json.dumps(figures, indent=1))
    for phase in PHASES:
        assert figures[phase]["last"] < figures[phase]["first"]
        assert figures[phase]["loss"] < 1e-3
        assert figures[phase]["norm"] < 1e-3
    assert figures["weights"] < 1e-4

"""The paper's configuration by its hub names, narrow: planned, fetched, trained, evaluated, exported and asked."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
import small_run
import torch
from hub_server import serving
from PIL import Image
from public_models import BERT, CLIP, NARROW, PAPER, VICUNA, VOCABULARY, publish

from onediff.training.checkpoint.load import read_weights

CONFIG = "configs/onediff_7b.yaml"
PAIRS = ("spot-the-diff", "clevr-change", "image-editing-request", "birds-to-words", "retrieved", "instruct-pix2pix")
SIZES = {
    **{f"model.vision.config.{key}": value for key, value in NARROW.items()},
    "model.vision.config.projection_dim": 16,
    "model.vision.config.image_size": 56,
    "model.vision.image.size": 56,
    "model.vision.levels": [1, 2],
    "model.delta.tokens": 4,
    "model.delta.layers": 2,
    "model.delta.width": NARROW["hidden_size"],
    "model.delta.heads": 4,
    "model.delta.intermediate": NARROW["intermediate_size"],
    **{f"model.language.config.{key}": value for key, value in NARROW.items()},
    "model.language.config.num_key_value_heads": 4,
    "model.language.config.vocab_size": VOCABULARY,
}
SHORT = {
    "data.workers": 0,
    "training.precision": "fp32",
    "tracking.live": False,
    "evaluation.max_new_tokens": 8,
    **{f"phases.{phase}.epochs": "null" for phase in ("one", "two")},
    **{f"phases.{phase}.steps": 2 for phase in ("one", "two")},
    **{f"phases.{phase}.global_batch": 4 for phase in ("one", "two")},
    **{f"phases.{phase}.micro_batch": 2 for phase in ("one", "two")},
}


class Site:
    """A machine whose jobs have no way out: what is not in the hub's cache is not there."""

    def __init__(self, folder: Path, published: dict[str, dict[str, torch.Tensor]]) -> None:
        self.folder, self.published = folder, published
        data = folder / "data"
        sets = {f"data.sets.{name}.path": data / "pairs" for name in PAIRS}
        sets |= {f"data.sets.{name}": data / "singles" for name in ("llava-558k", "llava-665k")}
        self.sizes = [f"{key}={value}" for key, value in {**SIZES, **sets}.items()]
        self.short = [*self.sizes, *(f"{key}={value}" for key, value in SHORT.items())]

    def onediff(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its good end."""
        home = {"HF_HOME": str(self.folder / "home"), "HF_HUB_OFFLINE": "1", **environment}
        done = small_run.onediff(list(words), **home)
        assert done.returncode == 0, f"{words[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """The three models are fetched from a hub, which is gone when a job starts."""
    folder = tmp_path_factory.mktemp("paper")
    small_run.render(folder / "data", pairs=24, singles=24)
    site = Site(folder, {repository.name: publish(repository, folder / "hub") for repository in PAPER})
    with serving(folder / "hub") as hub:
        done = site.onediff("fetch", CONFIG, *site.sizes, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert all(repository.name in done.stdout for repository in PAPER)
    return site


def loss_of(run: Path, phase: str) -> float:
    """The last loss in the journal of a phase."""
    return small_run.metrics(run, phase)[2]


def test_it_is_planned_and_phase_one_starts_from_the_public_weights(site):
    plan = site.onediff("plan", CONFIG, "--gpus", "64", "--gpu", "h100-80g", *site.sizes).stdout
    assert "missing" not in plan and "onediff fetch" not in plan
    run = site.folder / "one"
    site.onediff("train", CONFIG, *site.short, "--run", str(run), "--phases", "one")
    assert math.isfinite(loss_of(run, "one"))
    # Tower and language model are frozen in phase one, so they are what was published; the delta module began as BERT.
    held = dict(read_weights(next((run / "checkpoints" / "phase-one").glob("step-*"))))
    vicuna, clip, bert = (site.published[repository.name] for repository in (VICUNA, CLIP, BERT))
    language = {name.removeprefix("language."): tensor for name, tensor in held.items() if name.startswith("language.")}
    assert len(language) == 21 and all(torch.equal(tensor, vicuna[name].float()) for name, tensor in language.items())
    tower = {name.removeprefix("vision.model."): tensor for name, tensor in held.items() if name.startswith("vision.")}
    assert len(tower) == 39 and all(torch.equal(tensor, clip[f"vision_model.{name}"]) for name, tensor in tower.items())
    began = bert["bert.encoder.layer.1.intermediate.dense.weight"]
    assert (held["delta.layers.1.expand.weight"] - began).abs().max() < 0.01 < began.abs().max()


@pytest.mark.long
def test_it_goes_through_both_phases_evaluation_export_and_a_caption(site):
    """Two ranks under ZeRO-3 read their parts of PyTorch's files."""
    run, saved = site.folder / "run", site.folder / "model"
    words = [*site.short, "parallel.zero_stage=3", "--processes", "2"]
    site.onediff("train", CONFIG, *words, "--run", str(run))
    assert all(math.isfinite(loss_of(run, phase)) for phase in ("one", "two"))
    scores = site.folder / "scores.json"
    site.onediff("evaluate", str(run), "bootstrap=0", "--report", str(scores))
    assert json.loads(scores.read_text())
    site.onediff("export", str(run), str(saved))
    images = [str(site.folder / f"{colour}.png") for colour in ("red", "blue")]
    for image in images:
        Image.new("RGB", (120, 60), Path(image).stem).save(image)
    said = [
        site.onediff("caption", *images, "--model", str(model), "--max-new-tokens", "8").stdout
        for model in (run, saved)
    ]
    assert said[0] == said[1] and said[0].strip()

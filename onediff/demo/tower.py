"""A vision tower for the demo, trained for a minute to name the object in each patch and saved as a Hugging Face folder.

Real runs start from a pretrained tower. The demo downloads nothing, and a tower with random weights hardly learns to tell
shapes apart from captions alone. The renderer knows every object, so linear heads on each patch token are trained to
predict the shape, colour, size and material of the object whose centre lies in the patch. The heads are then discarded.

Cost with the demo's tower (0.8 million parameters, 10 tokens): about 1.1 ms of processor time per image and step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onediff.config.data import DataConfig
from onediff.config.model import VisionConfig
from onediff.config.training import OptimizerConfig
from onediff.data.fits import fit_of
from onediff.data.images import upright_size
from onediff.data.manifest import read_manifest
from onediff.data.mixing import Mix
from onediff.data.rows import encoded
from onediff.data.sample import Sample, parse_sample
from onediff.data.stream import Source
from onediff.demo.labels import ATTRIBUTES, NOTHING, Labels, objects
from onediff.model.vision import VisionTower, vision_architecture
from onediff.progress import progress
from onediff.training.heap import keep_freed_memory
from onediff.training.muon import Muon
from onediff.training.optimizer import lr_multiplier

log = logging.getLogger(__name__)

OPTIMIZER = OptimizerConfig(lr=2e-3, betas=(0.9, 0.98), warmup=0.05)
POSITION_STD = 0.28
"""Initial standard deviation of patch embeddings; position embeddings with CLIP's 0.02 would be drowned out."""
FIRST_SAMPLES = 512
"""Samples of each data set that are searched for the values of each attribute."""
RECORD = "tower.json"
"""The file beside the weights that records how they were made and how well they name objects."""
SAVE_EVERY = 100
"""Steps between saved states, from which an interrupted training continues."""
HELD_OUT, HELD_OUT_SAMPLES = "val", 200
"""The split and number of samples for measuring accuracy."""


@dataclass(frozen=True)
class TowerTraining:
    """How long the tower is trained, and in which batches."""

    steps: int
    """Optimizer steps."""
    batch: int = 40
    """Samples per step; a pair has two images."""
    seed: int = 0
    """Initial weights and the order of the samples."""


class Scenes:
    """The images and labels of the data sets of a run, in an order that follows from the seed."""

    def __init__(self, vision: VisionConfig, data: DataConfig, split: str, lanes: int, seed: int) -> None:
        """Raises UserError if a data set is missing or does not list its objects."""
        arch = vision_architecture(vision)
        self.grid = arch.image_size // arch.patch_size
        self.data = data
        self.fit = fit_of(vision.image, arch.patch_size)
        self.sources = [
            Source.open(name, Path(one.path) / split, lanes, seed, self.data.block) for name, one in data.sets.items()
        ]
        self.mix = Mix([source.lanes.samples for source in self.sources])
        first = [next(self._samples(source)) for source in self.sources]
        self.sides = [upright_size(encoded(sample)[0], self.data.max_pixels) for sample in first]
        """Width and height of each data set's images, which its boxes refer to; a rendered set has a single size."""

    def labels(self) -> Labels:
        """The values of each attribute in the first samples of every data set."""
        return Labels.of(sample for source in self.sources for sample in islice(self._samples(source), FIRST_SAMPLES))

    def batch(self, step: int, labels: Labels) -> tuple[Tensor, Tensor]:
        """`[images, 3, size, size]` uint8 and `[images, patches, attributes]` int64: one sample of each lane."""
        images: list[Any] = []
        classes: list[Any] = []
        for lane in range(self.sources[0].lanes.lanes):
            number, position = self.mix.at(lane, step)
            source = self.sources[number]
            place = source.lanes.at(lane, position)
            sample = parse_sample(source.shards.read(place.shard, place.sample))
            images += [*self.fit.read(encoded(sample), self.data.max_pixels, self.data.pixels).images]
            classes += [labels.of_patches(things, self.sides[number], self.grid) for things in objects(sample)]
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(classes))

    def _samples(self, source: Source) -> Iterator[Sample]:
        for shard, count in enumerate(source.lanes.shard_samples):
            for number in range(count):
                yield parse_sample(source.shards.read(shard, number))


class Heads(nn.Module):
    """The tower with a linear layer per attribute on its last patch tokens; shape has a class for no object."""

    def __init__(self, tower: VisionTower, labels: Labels) -> None:
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleList(
            nn.Linear(tower.width, len(labels.values[attribute]) + (attribute == "shape")) for attribute in ATTRIBUTES
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[images, patches, classes]` for each attribute."""
        tokens, _ = self.tower(images)
        return [head(tokens) for head in self.heads]

    def loss(self, images: Tensor, classes: Tensor) -> Tensor:
        """Cross-entropy summed over the attributes, each averaged over its labelled patches."""
        shape, *others = self(images)
        there = classes[..., 0] != NOTHING
        nothing = shape.shape[-1] - 1
        loss = F.cross_entropy(shape.flatten(0, 1), classes[..., 0].where(there, nothing).flatten())
        for number, answers in enumerate(others, start=1):
            loss = loss + F.cross_entropy(answers[there], classes[..., number][there])
        return loss

    @torch.no_grad()
    def accuracy(self, images: Tensor, classes: Tensor) -> dict[str, float]:
        """The share of objects with the right attribute, by attribute."""
        there = classes[..., 0] != NOTHING
        chosen = [answers.argmax(-1) for answers in self(images)]
        return {
            attribute: (chosen[number] == classes[..., number])[there].double().mean().item()
            for number, attribute in enumerate(ATTRIBUTES)
        }


def make_tower(vision: VisionConfig, data: DataConfig, training: TowerTraining) -> dict[str, float]:
    """Trains the tower that `vision` describes and writes it to the folder `model.vision.name`.

    Continues from the last saved state after an interruption; does nothing if the folder holds a tower with the same
    settings. Returns the accuracy on the split `val`, by attribute. Raises UserError.
    """
    assert vision.name is not None
    target = Path(vision.name)
    recipe = {"vision": vision.model_dump(mode="json"), "data": digests(data), **vars(training)}
    if (known := _finished(target)) and known["recipe"] == recipe:
        return known["accuracy"]
    keep_freed_memory()
    scenes = Scenes(vision, data, "train", training.batch, training.seed)
    held_out = Scenes(vision, data, HELD_OUT, HELD_OUT_SAMPLES, training.seed)
    labels = scenes.labels()
    torch.manual_seed(training.seed)
    fresh = vision.model_copy(update={"name": None})
    model = Heads(VisionTower(fresh), labels)
    spread_positions(model.tower.model)
    state = target.with_name(f".{target.name}.state")
    _train(model, scenes, labels, training, state, recipe)
    accuracy = model.eval().accuracy(*held_out.batch(0, labels))
    _write(model, target, {"recipe": recipe, "accuracy": accuracy})
    state.unlink(missing_ok=True)
    return accuracy


def digests(data: DataConfig) -> dict[str, str]:
    """A digest of the training shards of each data set. Raises UserError if a data set is missing."""
    return {
        name: hashlib.sha256("".join(shard.sha256 for shard in read_manifest(one.folder).shards).encode()).hexdigest()
        for name, one in data.sets.items()
    }


def spread_positions(tower: Any) -> None:
    """Replaces learned position embeddings by sines of row and column, if the tower has a table of them."""
    tables = [module for name, module in tower.named_modules() if name.endswith("position_embedding")]
    if not tables or not isinstance(tables[0], nn.Embedding):
        return
    table = tables[0].weight
    grid = math.isqrt(len(table))  # a class token may come first
    with torch.no_grad():
        table[-grid * grid :] = sines(grid, table.shape[1])


def sines(grid: int, width: int) -> Tensor:
    """`[grid · grid, width]`, row by row: sines and cosines of row and column at falling frequencies."""
    frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    table = torch.cat([waves.repeat_interleave(grid, 0), waves.repeat(grid, 1)], 1)
    table = table - table.mean(0)
    return POSITION_STD * table / table.std()


def _train(
    model: Heads, scenes: Scenes, labels: Labels, training: TowerTraining, state: Path, recipe: dict[str, Any]
) -> None:
    """Trains all steps that `state` does not include."""
    weights = list(model.parameters())
    matrices = [layer.weight for layer in model.tower.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    others = [weight for weight in weights if all(weight is not matrix for matrix in matrices)]
    groups: list[dict[str, Any]] = [{"params": matrices, "matrices": True}, {"params": others}]
    optimizer = Muon(groups, lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, weight_decay=0.0, fused=True)
    begun = _restore(state, recipe, model, optimizer)
    bar = progress(training.steps, "vision tower", "steps", initial=begun)
    with ThreadPoolExecutor(1) as reader, bar:
        coming = reader.submit(scenes.batch, begun, labels)
        for step in range(begun, training.steps):
            images, classes = coming.result()
            coming = reader.submit(scenes.batch, step + 1, labels)
            for group in optimizer.param_groups:
                group["lr"] = OPTIMIZER.lr * lr_multiplier(OPTIMIZER, step, training.steps)
            optimizer.zero_grad()
            model.loss(images, classes).backward()
            nn.utils.clip_grad_norm_(weights, OPTIMIZER.clip)
            optimizer.step()
            bar.update()
            if (step + 1) % SAVE_EVERY == 0:
                _save(state, recipe, step + 1, model, optimizer)


def _save(state: Path, recipe: dict[str, Any], step: int, model: Heads, optimizer: torch.optim.Optimizer) -> None:
    """Writes the state under a temporary name first, so that an interruption leaves the previous one."""
    state.parent.mkdir(parents=True, exist_ok=True)
    aside = state.with_name(f"{state.name}.tmp")
    torch.save(
        {"recipe": recipe, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, aside
    )
    aside.rename(state)


def _restore(state: Path, recipe: dict[str, Any], model: Heads, optimizer: torch.optim.Optimizer) -> int:
    """The step to continue from: that of the saved state if its recipe is the same, else 0."""
    if not state.is_file():
        return 0
    saved = torch.load(state, weights_only=True)
    if saved["recipe"] != recipe:
        return 0
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    log.info("the vision tower continues from step %d", saved["step"])
    return int(saved["step"])


def _write(model: Heads, target: Path, record: dict[str, Any]) -> None:
    """Writes the tower alone as a Hugging Face folder, with a record of how it was made; replaces `target`."""
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    model.tower.model.save_pretrained(aside)
    (aside / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def _finished(target: Path) -> dict[str, Any] | None:
    """The record of the tower in `target`; None if there is none."""
    try:
        return json.loads((target / RECORD).read_text())
    except (OSError, ValueError):
        return None

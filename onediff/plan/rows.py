"""How many rows a phase reads and what a row contains, from manifests if present, else from published counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from onediff.config.data import DataConfig
from onediff.config.model import ModelConfig
from onediff.config.training import PhaseConfig
from onediff.data.index import read_index
from onediff.data.manifest import FILE, parse_manifest
from onediff.plan.architecture import Sizes, sizes_of
from onediff.plan.walk import Shape

TEXT = 128
"""Text tokens in a row: prompt, instruction and a caption of a few sentences."""
ANSWER = 0.5
"""Fraction of the text tokens that are targets."""


@dataclass(frozen=True)
class Rows:
    """The length of a phase and the average contents of its rows."""

    steps: int | None
    """Optimizer steps; None if no data set has a known size."""
    steps_from: str
    images: float
    """Images per row, on average."""
    pairs: float
    """Pairs per row with delta tokens, on average."""
    samples: float = 1.0
    """Samples per row, on average; above 1 if rows are packed."""


def rows_of(model: ModelConfig, data: DataConfig, phase: PhaseConfig, text: int = TEXT) -> Rows:
    """The length of a phase and the average contents of its rows. Reads manifests and at most one index per data set.

    The number of samples in a packed row is estimated from samples of usual size with `text` text tokens each.
    """
    total = sum(phase.mix.values())
    counts, where = {}, set()
    images = pairs = 0.0
    published = published_counts()
    for name, weight in phase.mix.items():
        folder = Path(data.sets[name].path) / data.sets[name].split
        if (folder / FILE).is_file():
            manifest = parse_manifest(folder / FILE)
            counts[name] = manifest.samples
            where.add("manifests")
            paired = _holds_pairs(manifest.path(manifest.shards[0])) if manifest.shards else True
        else:
            if name in published:
                counts[name] = published[name][0]
                where.add("published counts")
            paired = published.get(name, (0, True))[1]
        share = weight / total
        images += share * (2 if paired or phase.couple else 1)
        pairs += share * (1 if paired or phase.couple else 0)
    samples = 1.0
    if phase.pack is not None:
        sizes = sizes_of(model).usual()
        usual = images * sizes.image_tokens + pairs * sizes.delta.tokens + text
        samples = max(1.0, phase.pack / min(usual, data.max_tokens))
        images, pairs = images * samples, pairs * samples
    if phase.steps is not None:
        return Rows(phase.steps, "the configuration", images, pairs, samples)
    if not counts:
        return Rows(None, "no data set is on this machine or has a published count", images, pairs, samples)
    assert phase.epochs is not None
    # As in `phase_steps`: an epoch ends when the data set that lasts longest has been read once.
    rows = max(samples * total / phase.mix[name] for name, samples in counts.items())
    steps = math.ceil(phase.epochs * rows / samples / phase.global_batch)
    return Rows(steps, " and ".join(sorted(where)), images, pairs, samples)


def _holds_pairs(tar: Path) -> bool:
    """Whether the first sample of a shard is a pair; True if the shard is not on this machine."""
    if not tar.is_file():
        return True
    index = read_index(tar, write=False)
    return not len(index) or any(member.suffix.startswith("before.") for member in index[0].members)


@cache
def published_counts() -> Mapping[str, tuple[int, bool]]:
    """Published sample counts of the data sets in `configs/diffcap.yaml`, and whether they contain pairs."""
    import yaml

    from onediff.config.compose import configs_folder

    parts = yaml.safe_load((configs_folder() / "diffcap.yaml").read_text(encoding="utf-8"))["parts"]
    return {
        name: (part["published"], not part["reader"].startswith("llava"))
        for name, part in parts.items()
        if "published" in part
    }


def shapes_of(
    sizes: Sizes, rows: Rows, micro_batch: int, max_tokens: int, text: int, pack: int | None = None
) -> tuple[Shape, Shape]:
    """A micro-batch of usual rows and images, to estimate time, and the largest possible one, to estimate memory.

    The largest has rows of `max_tokens` tokens with two images each, and every text token is a target; if rows are
    packed, it consists of `pack` tokens filled with the samples that have the most images.
    """
    paired = rows.pairs > 0
    most = 2 if paired else 1
    seats = most * sizes.image_tokens + paired * sizes.delta.tokens
    of_usual = sizes.usual()
    usual_seats = most * of_usual.image_tokens + paired * sizes.delta.tokens
    if pack is not None:
        one = round(pack / rows.samples)
        fullest = max(1, pack // (seats + 1))
        usual = Shape(
            rows=micro_batch,
            tokens=pack,
            images=max(1, round(rows.images * micro_batch)),
            pairs=round(rows.pairs * micro_batch),
            targets=max(1, round(micro_batch * rows.samples * text * ANSWER)),
            scores=round(micro_batch * rows.samples * one**2),
        )
        largest = Shape(
            rows=micro_batch,
            tokens=pack,
            images=most * fullest * micro_batch,
            pairs=paired * fullest * micro_batch,
            targets=micro_batch * pack,
        )
        return usual, largest
    mean_seats = rows.images * of_usual.image_tokens + rows.pairs * sizes.delta.tokens
    usual = Shape(
        rows=micro_batch,
        # Rows are padded to the longest in the micro-batch; in a mix that is a row with two images.
        tokens=min(max_tokens, round((usual_seats if micro_batch > 1 else mean_seats) + text)),
        images=max(1, round(rows.images * micro_batch)),
        pairs=round(rows.pairs * micro_batch),
        targets=max(1, round(micro_batch * text * ANSWER)),
    )
    largest = Shape(
        rows=micro_batch,
        tokens=max_tokens,
        images=most * micro_batch,
        pairs=paired * micro_batch,
        targets=micro_batch * max(1, max_tokens - seats),
    )
    return usual, largest

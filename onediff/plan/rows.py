"""How many rows a phase reads, and what is in a row: from manifests where they are there, else from published counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.data.index import read_index
from onediff.data.manifest import FILE, parse_manifest
from onediff.plan.architecture import Sizes, sizes_of
from onediff.plan.walk import Shape

TEXT = 128
"""Tokens of a row that are neither image nor delta: prompt, instruction and a caption of some sentences."""
ANSWER = 0.5
"""Share of those that are learned."""


@dataclass(frozen=True)
class Rows:
    """What a phase reads."""

    steps: int | None
    """None if the size of no data set is known"""
    steps_from: str
    images: float
    """images of a row, on average"""
    pairs: float
    """delta tokens are made for that many pairs a row"""
    samples: float = 1.0
    """samples of a row, on average: above 1 where rows are packed"""


def rows_of(config: RunConfig, phase: PhaseConfig, text: int = TEXT) -> Rows:
    """Steps and images of a phase. Reads manifests and at most one index of each data set.

    How many samples a packed row takes is judged by usual ones, with `text` tokens of text each.
    """
    total = sum(phase.mix.values())
    counts, where = {}, set()
    images = pairs = 0.0
    published = published_counts()
    for name, weight in phase.mix.items():
        folder = Path(config.data.sets[name].path) / config.data.sets[name].split
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
        sizes = sizes_of(config.model).usual()
        usual = images * sizes.image_tokens + pairs * sizes.delta.tokens + text
        samples = max(1.0, phase.pack / min(usual, config.data.max_tokens))
        images, pairs = images * samples, pairs * samples
    if phase.steps is not None:
        return Rows(phase.steps, "the configuration", images, pairs, samples)
    if not counts:
        return Rows(None, "no data set is here, and none has a published count", images, pairs, samples)
    assert phase.epochs is not None
    # As `phase_steps` counts: until the data set that lasts longest has been read so often.
    rows = max(samples * total / phase.mix[name] for name, samples in counts.items())
    steps = math.ceil(phase.epochs * rows / samples / phase.global_batch)
    return Rows(steps, " and ".join(sorted(where)), images, pairs, samples)


def _holds_pairs(tar: Path) -> bool:
    """Whether the first sample of a shard has an image before and one after; True where the shard is not here."""
    if not tar.is_file():
        return True
    index = read_index(tar, write=False)
    return not len(index) or any(member.suffix.startswith("before.") for member in index[0].members)


def published_counts() -> dict[str, tuple[int, bool]]:
    """Samples of the data sets in `configs/diffcap.yaml` that their authors publish, and whether they are pairs."""
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
    """A micro-batch of usual rows, of images of usual size, for time, and the largest that may come, for memory.

    The largest has rows of `max_tokens`, two images in each, and learns all that is text; a packed one is `pack` tokens
    of nothing but the samples with the most images.
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
        # Rows are padded to the longest of the micro-batch, which in a mix is one with two images.
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

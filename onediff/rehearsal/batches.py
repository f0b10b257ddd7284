"""The largest and the smallest possible micro-batch of a phase, built without a tokenizer, shards or real images."""

from __future__ import annotations

import torch
from PIL import Image

from onediff.config.model import VisionConfig
from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.data.batch import Batch
from onediff.data.fits import Fit, Seen, fit_of
from onediff.data.prompts import DELTA, IMAGE
from onediff.data.rows import TokenRow, collate, collate_packed
from onediff.errors import UserError
from onediff.hub.planes_onediff import grids
from onediff.model.vision import side_of, vision_architecture
from onediff.plan.rows import rows_of

WORDS = 8
"""Number of tokens in the smallest sample, which has only text."""


def largest(config: RunConfig, name: str) -> Batch:
    """A micro-batch of the longest rows, with as many images as fit in them. Raises UserError if no sample fits."""
    phase = config.phases[name]
    pairs = rows_of(config.model, config.data, phase).pairs > 0
    seen = _most_tokens(config.model.vision, 2 if pairs else 1)
    seats = sum(seen.tokens) + (config.model.delta.tokens if pairs else 0)
    length = phase.pack or config.data.max_tokens
    if seats + 2 > min(length, config.data.max_tokens):
        raise UserError(
            f"phases.{name}: the images of a sample take {seats} tokens, which leaves no room for text in rows of "
            f"{min(length, config.data.max_tokens)} tokens; raise data.max_tokens"
        )
    samples = length // (seats + 2) if phase.pack else 1
    rows = [[_sample(seen, pairs, seats, length // samples)] * samples for _ in range(phase.micro_batch)]
    return _collated(rows, phase.pack)


def smallest(vision: VisionConfig, phase: PhaseConfig) -> Batch:
    """A micro-batch with a few words in each row and no images."""
    no_images = torch.from_numpy(_fit(vision).of([]).images)
    row = TokenRow(torch.ones(WORDS, dtype=torch.int64), _targets(WORDS, 1), no_images, (), False, 0, ("text",))
    return _collated([[row]] * phase.micro_batch, phase.pack)


def _collated(rows: list[list[TokenRow]], pack: int | None) -> Batch:
    return collate_packed(rows, pack) if pack else collate([one for (one,) in rows])


def _sample(seen: Seen, pair: bool, seats: int, length: int) -> TokenRow:
    """One token, the images, the delta tokens, and an answer that fills the rest of `length`."""
    places = [IMAGE] * sum(seen.tokens) + [DELTA] * (seats - sum(seen.tokens))
    ids = torch.tensor([1, *places, *[1] * (length - 1 - seats)])
    images = torch.from_numpy(seen.images)
    return TokenRow(ids, _targets(length, 1 + seats), images, seen.tokens, pair, 0, ("image",), planes=seen.planes)


def _targets(length: int, first: int) -> torch.Tensor:
    return torch.arange(length) >= first


def _most_tokens(vision: VisionConfig, images: int) -> Seen:
    """The tower's input for the image size that gives the most tokens."""
    fit, image = _fit(vision), vision.image
    sizes = [(4 * image.size, 4 * image.size)]
    if image.fit == "tiles":
        sizes += [(columns * image.size, rows * image.size) for columns, rows in grids(image.max_tiles)]
    found = [fit.of([Image.new("RGB", size)] * images) for size in sizes]
    return max(found, key=lambda seen: sum(seen.tokens))


def _fit(vision: VisionConfig) -> Fit:
    return fit_of(vision.image, side_of(vision_architecture(vision).patch_size))

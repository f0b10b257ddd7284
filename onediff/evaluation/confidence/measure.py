"""Measures `Knowledge` on a model's training images and on held-out pairs."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onediff.data.heldout import HeldOut
from onediff.data.images import open_upright
from onediff.data.sample import BadSample, parse_sample
from onediff.data.stream import Source
from onediff.errors import UserError
from onediff.evaluation.captioner import Captioner
from onediff.evaluation.confidence.calibration import FEWEST, Calibration, reliability
from onediff.evaluation.confidence.familiar import Familiar
from onediff.evaluation.confidence.knowledge import ROLES, Knowledge
from onediff.evaluation.confidence.looks import image_features, second_look
from onediff.evaluation.confidence.refusal import ClaimedChanges, RefusalLimit
from onediff.evaluation.items import known, read
from onediff.evaluation.items.agreement import judged
from onediff.progress import progress

SENTENCES = 3
"""The number of wordings of "nothing has changed" whose probabilities are added."""


def measured(
    captioner: Captioner,
    trained_on: Sequence[Path],
    held_out: HeldOut,
    images: int,
    about: str,
    batch_size: int = 16,
    **generation: Any,
) -> Knowledge:
    """Knowledge from `images` training images, evenly from the splits `trained_on`, and all pairs of `held_out`.

    Costs one pass of the tower per image, and a caption and a second pass per pair. Raises UserError if there is nothing
    to measure.
    """
    features = training_features(captioner, trained_on, images, batch_size)
    values, seen, claims, sentences = held_out_pairs(captioner, held_out, batch_size, generation)
    familiar = Familiar.of(features, seen)
    refusal = RefusalLimit.of(sentences, claims)
    kept = np.ones(len(values), bool) if refusal is None else ~(claims.nothing > refusal.limit)
    values, right = values[kept], claims.right[kept]
    enough = min(int(right.sum()), len(right) - int(right.sum())) >= FEWEST
    split = held_out.source.shards.folder
    return Knowledge(
        familiar,
        Calibration.of(values, right) if enough else None,
        reliability(values, right) if enough else np.empty((0, 3)),
        about,
        f"{len(kept)} pairs of {split.parent.name}-{split.name}, of which {int(claims.right.sum())} are captioned right, "
        f"and {len(features)} training images",
        refusal,
    )


def training_features(
    captioner: Captioner, splits: Sequence[Path], images: int, batch_size: int
) -> NDArray[np.float32]:
    """`[at most images, width]` features. Raises UserError if no image can be read."""
    shares = [islice(images_of(split, -(-images // len(splits))), -(-images // len(splits))) for split in splits]
    bar = progress(images, "training images", "images")
    found = []
    for share in shares:
        while chunk := list(islice(share, batch_size)):
            rows = [captioner.processor.prompt([image], None, "single") for image in chunk]
            found.append(image_features(captioner.model, rows, captioner.device))
            bar.update(len(chunk))
    bar.close()
    if not found:
        raise UserError(f"{', '.join(map(str, splits))}: no image that can be read")
    return np.concatenate(found)


def images_of(split: Path, wanted: int) -> Iterator[Image.Image]:
    """One image each of up to `wanted` samples, spread evenly over a split, then their other images; unreadable ones are
    skipped.

    So the first `wanted` images come from all shards, whether a sample has one image or two.
    """
    source = Source.open(split.parent.name, split, lanes=1, seed=0, block=1)
    ends = list(accumulate(source.lanes.shard_samples, initial=0))
    samples = min(wanted, ends[-1])
    for turn in (0, 1):
        for k in range(samples):
            place = k * ends[-1] // samples
            shard = bisect_right(ends, place) - 1
            try:
                images = [*parse_sample(source.shards.read(shard, place - ends[shard])).images.values()]
                if turn < len(images):
                    yield open_upright(images[(k + turn) % len(images)], 1_000_000_000)
            except BadSample:
                continue


def held_out_pairs(
    captioner: Captioner, held_out: HeldOut, batch_size: int, generation: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float32], ClaimedChanges, tuple[str, ...]]:
    """For every readable pair: its caption's mean log-probability, features `[pairs, 2, width]`, what is known about its
    change; and sentences that nothing has changed."""
    pairs, unchanged = list(held_out.references), unchanged_pairs(held_out)
    sentences = usual_sentences(held_out, unchanged)
    values, seen, nothing, right, readable = [], [], [], [], list[str]()
    bar = progress(len(pairs), "held-out pairs", "pairs")
    for start in range(0, len(pairs), batch_size):
        rows, chunk = [], []
        for pair in pairs[start : start + batch_size]:
            try:
                sample = held_out.sample(pair)
                shown = [open_upright(sample.images[role], captioner.processor.config.max_pixels) for role in ROLES]
                rows.append(captioner.processor.prompt(shown, sample.instruction))
                chunk.append(pair)
            except BadSample:
                continue
        if rows:
            answers = captioner.answer_ids(rows, **generation)
            means, features = second_look(captioner.model, rows, answers, captioner.device)
            captions = captioner.texts(answers)
            values.append(means)
            seen.append(features)
            nothing.append(captioner.nothing(rows, captions, sentences))
            right += [is_right(held_out, pair, caption) for pair, caption in zip(chunk, captions, strict=True)]
            readable += chunk
        bar.update(len(chunk))
    bar.close()
    if not values:
        raise UserError(f"{held_out.source.shards.folder}: no pair that can be read")
    claims = ClaimedChanges(
        np.concatenate(nothing), np.array([pair in unchanged for pair in readable]), np.array(right)
    )
    return np.concatenate(values), np.concatenate(seen), claims, sentences


def unchanged_pairs(held_out: HeldOut) -> set[str]:
    """The pairs on which nothing has changed, as far as the data set says."""
    types = {pair for pair, kind in held_out.change_types.items() if kind == "none"}
    return types | {pair for pair, meta in held_out.changes.items() if not meta["changes"]}


def usual_sentences(held_out: HeldOut, unchanged: Iterable[str]) -> tuple[str, ...]:
    """The most frequent captions of the unchanged pairs."""
    counts = Counter(caption for pair in sorted(unchanged) for caption in held_out.references[pair])
    return tuple(caption for caption, _ in counts.most_common(SENTENCES))


def is_right(held_out: HeldOut, pair: str, caption: str) -> bool:
    """Whether a caption states every change and nothing else; if the changes are unknown, whether it is a reference."""
    truth = known(held_out.changes.get(pair, {}), f"pair {pair!r}")
    if truth is not None:
        return judged(read(caption), truth).right
    return plain(caption) in map(plain, held_out.references[pair])


def plain(text: str) -> str:
    """The words in lower case, without punctuation."""
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.casefold()).split())

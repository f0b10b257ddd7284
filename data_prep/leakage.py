"""Finds samples that share all their images, or one of them, with another split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOTES = ("", "in_two_splits", "image_in_two_splits")
"""The meaning of a sample's mark."""
KINDS = ("", "same_images", "one_image")
Leakage = dict[str, dict[str, dict[str, int]]]
"""Number of samples, by `[split][other split][kind]`."""


class SplitImages(NamedTuple):
    """The images of a split's samples, as arrays `[samples]` of numbers that identify images; -1 for none."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    complete: NDArray[np.bool_]
    """Whether the sample has all its images; incomplete ones are ignored."""


def compare(
    splits: Mapping[str, SplitImages], refuse: Callable[[str, int], None]
) -> tuple[dict[str, NDArray[np.int8]], Leakage]:
    """Marks and counts the samples that share all their images, or one, with an earlier split of `splits`.

    A pair in reverse order counts as the same pair. Calls `refuse(split, sample)`, which may raise, for each sample whose
    images are all in `train`.
    """
    marks = {name: np.zeros(len(images.first), dtype=np.int8) for name, images in splits.items()}
    counts: Leakage = {name: defaultdict(lambda: dict.fromkeys(KINDS[1:], 0)) for name in splits}
    names = list(splits)
    whole = np.concatenate([_pair(images) for images in splits.values()])
    complete = np.concatenate([images.complete for images in splits.values()])
    split_of = np.repeat(np.arange(len(names)), [len(images.first) for images in splits.values()])
    chosen = np.flatnonzero(complete)
    _, place, inverse = np.unique(whole[chosen], return_index=True, return_inverse=True)
    owner = split_of.copy()
    owner[chosen] = split_of[chosen][place][inverse]
    train = splits.get("train")
    most = max(int(max(images.first.max(initial=-1), images.second.max(initial=-1))) for images in splits.values())
    in_train = np.zeros(most + 2, dtype=bool)  # by image; the last element is for -1
    if train:
        in_train[train.first[train.complete]] = in_train[train.second[train.complete]] = True
        in_train[-1] = False
    begin = 0
    for number, name in enumerate(names):
        images = splits[name]
        own = owner[begin : begin + len(images.first)]
        begin += len(images.first)
        same = own != number
        if name != "train":
            one = in_train[images.first] | in_train[images.second]
            marks[name][one & images.complete & (images.second >= 0) & ~same] = 2
        marks[name][same] = 1
        for sample in np.flatnonzero(same & (own == names.index("train"))) if train else ():
            refuse(name, int(sample))
        for kind, others in (
            (1, own[same]),
            (2, np.full((marks[name] == 2).sum(), names.index("train") if train else 0)),
        ):
            for other, count in zip(*np.unique(others, return_counts=True), strict=True):
                counts[name][names[other]][KINDS[kind]] += int(count)
                counts[names[other]][name][KINDS[kind]] += int(count)
    return marks, {name: dict(found) for name, found in counts.items()}


def _pair(images: SplitImages) -> NDArray[np.int64]:
    """A number that identifies the images of a sample in either order."""
    low, high = np.minimum(images.first, images.second), np.maximum(images.first, images.second)
    return (low + 1) << 32 | (high + 1)

"""Estimates how much of a data set's images `fit: crop` would cut away, from the headers of a sample of them."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Mapping

from onediff.config.model import ImageConfig
from onediff.data.formats import open_image
from onediff.data.geometry import seen_box
from onediff.data.index import read_index
from onediff.data.manifest import Manifest
from onediff.data.sample import IMAGE_SUFFIXES

LOOKED_AT = 256
"""Samples whose images are measured."""
TOLERATED = 0.1
"""Share of the images that a crop may cut away without a warning."""
HEADER_BYTES = 1 << 16
"""Bytes read from an image to find its size."""
MIDDLE_SQUARE = ImageConfig(fit="crop")

Sizes = Mapping[tuple[int, int], int]
"""The number of images by (width, height)."""


def crop_remark(sizes: Sizes, config: ImageConfig = MIDDLE_SQUARE) -> str | None:
    """A warning if a crop would lose more than `TOLERATED` of this data set's images, or None."""
    share = lost_to_crop(sizes, config)
    if share <= TOLERATED:
        return None
    return (
        f"`fit: crop` would cut away {share:.0%} of each image (mean of {sum(sizes.values()):,}), and the model cannot see "
        "changes there; model.vision.image.fit=pad, the default, keeps images whole"
    )


def lost_to_crop(sizes: Sizes, config: ImageConfig = MIDDLE_SQUARE) -> float:
    """The mean share of an image's area that a crop cuts away; 0 if there are no images."""
    lost = 0.0
    for (width, height), number in sizes.items():
        left, top, right, bottom = seen_box((width, height), config)
        lost += number * (1 - (right - left) * (bottom - top) / (width * height))
    return lost / max(1, sum(sizes.values()))


def first_sizes(manifest: Manifest) -> Counter[tuple[int, int]]:
    """The sizes of the images of `LOOKED_AT` samples, spread evenly over the first shard on this machine.

    Skips what it cannot read. Reads 64 KB per image.
    """

    sizes: Counter[tuple[int, int]] = Counter()
    path = next((manifest.path(s) for s in manifest.shards if not s.url and manifest.path(s).is_file()), None)
    if path is None:
        return sizes
    index = read_index(path, write=False)
    with path.open("rb") as file:
        for number in range(0, len(index), -(-len(index) // LOOKED_AT)):
            for suffix, offset, size in index[number].members:
                if suffix.rpartition(".")[2] not in IMAGE_SUFFIXES:
                    continue
                data = os.pread(file.fileno(), min(size, HEADER_BYTES), offset)
                # Training and `onediff data check` count the faults. Pillow's parsers raise many kinds of exceptions.
                with contextlib.suppress(Exception), open_image(io.BytesIO(data)) as image:
                    sizes[image.size] += 1
    return sizes

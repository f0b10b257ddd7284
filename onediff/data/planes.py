"""Where image tokens lie in their images, where images are not all seen in one shape (`fit: tiles`, `fit: native`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from onediff.data.geometry import Plane
from onediff.data.segments import Segments


@dataclass(frozen=True)
class Planes:
    """The images of a batch before the tower: on the device what computing needs, on the host what shapes depend on."""

    lengths: tuple[int, ...]
    """Image tokens of each image."""
    chosen: Tensor
    """`[tokens]` int64 into the tower's tokens, image by image; the tower gives as many for each of its inputs."""
    boxes: Tensor
    """`[tokens, 4]` fp32, as in `Plane`."""
    roles: Tensor
    """`[tokens of pairs]` int64: 0 for a token of an image before, 1 for one after."""
    pairs: Segments
    """The tokens of each pair, which come first."""
    mask: Tensor | None = None
    """`[images, 1, 1, longest]` bool, which of the patches are no padding; None if the tower's inputs have none."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Rows and columns of patches of each image, beside `mask`."""
    patches: Segments | None = None
    """Beside `mask`: the patches of each image, then its padding, as sequences."""

    def of_images(self, level: Tensor) -> Tensor:
        """`[tokens, width]`: the tokens that go on, of what the tower gave, `[views or images, tokens, width]`."""
        return level.flatten(0, 1).index_select(0, self.chosen)

    def of_pairs(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The same of the images that are in a pair, for each level."""
        chosen = self.chosen[: len(self.roles)]
        return [level.flatten(0, 1).index_select(0, chosen) for level in levels]


class HasPlanes(Protocol):
    """What is read here of a row."""

    images: Tensor
    planes: tuple[Plane, ...]
    is_pair: bool


def laid_out(rows: Sequence[HasPlanes]) -> tuple[Tensor, Planes | None]:
    """The tower's input for the images of these rows, those with pairs first, and where its tokens lie.

    None if every image is one view, or there is no image. Images in their own shape are padded to the one of the
    most patches, `[images, patches, numbers]`.
    """
    planes = [plane for row in rows for plane in row.planes]
    images = torch.cat([row.images for row in rows])
    if not planes:
        return images, None
    pairs = sum(row.is_pair for row in rows)
    lengths = [len(plane.chosen) for plane in planes]
    own_shape = planes[0].shape is not None
    longest = max(plane.inputs for plane in planes)
    given = [longest if own_shape else plane.given for plane in planes]
    starts = list(accumulate(given, initial=0))[:-1]
    made = Planes(
        lengths=tuple(lengths),
        chosen=torch.from_numpy(np.concatenate([p.chosen + start for p, start in zip(planes, starts, strict=True)])),
        boxes=torch.from_numpy(np.concatenate([plane.boxes for plane in planes])),
        roles=torch.from_numpy(np.repeat(np.arange(2 * pairs) % 2, lengths[: 2 * pairs])),
        pairs=Segments.of([sum(lengths[first : first + 2]) for first in range(0, 2 * pairs, 2)]),
    )
    return _padded(images, planes, made) if own_shape else (images, made)


def _padded(patches: Tensor, planes: Sequence[Plane], made: Planes) -> tuple[Tensor, Planes]:
    """Images in their own shape, each padded to the patches of the largest."""
    counts = [plane.inputs for plane in planes]
    longest = max(counts)
    padded = patches.new_zeros(len(planes), longest, patches.shape[-1])
    for place, image in zip(padded, patches.split(counts), strict=True):
        place[: len(image)] = image
    lengths = [length for count in counts for length in (count, longest - count) if length]
    return padded, replace(
        made,
        mask=(torch.arange(longest) < torch.tensor(counts)[:, None])[:, None, None],
        shapes=tuple(plane.shape for plane in planes if plane.shape),
        patches=Segments.of(lengths),
    )

"""The layout of image tokens for images of different shapes (`fit: tiles`, `fit: native`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from onediff.data.segments import Segments
from onediff.hub.planes_onediff import OneDiffPlane

if TYPE_CHECKING:
    from onediff.data.rows import TokenRow


@dataclass(frozen=True)
class Planes:
    """The image layout of a batch: tensors for computing on the device, and lengths for shapes on the host."""

    lengths: tuple[int, ...]
    """Image tokens of each image."""
    chosen: Tensor
    """`[tokens]` int64: indexes into the tower's flattened output, image by image."""
    boxes: Tensor
    """`[tokens, 4]` fp32, as in `OneDiffPlane`."""
    roles: Tensor
    """`[tokens of pairs]` int64: 0 for tokens of a before image, 1 for tokens of an after image."""
    pairs: Segments
    """The tokens of each pair; pairs come first."""
    paired: Segments
    """The tokens of each image of a pair."""
    mask: Tensor | None = None
    """`[images, 1, 1, longest]` bool, False for padding; None if the tower's inputs have no padding."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Rows and columns of patches of each image; set together with `mask`."""
    patches: Segments | None = None
    """The patches of each image, then its padding, as sequences; set together with `mask`."""

    def of_images(self, level: Tensor) -> Tensor:
        """Selects the kept tokens, `[tokens, width]`, from the tower's output `[views or images, tokens, width]`."""
        return level.flatten(0, 1).index_select(0, self.chosen)

    def of_pairs(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Selects the kept tokens of the images in pairs, for each level."""
        chosen = self.chosen[: len(self.roles)]
        return [level.flatten(0, 1).index_select(0, chosen) for level in levels]


def laid_out(rows: Sequence[TokenRow]) -> tuple[Tensor, Planes | None]:
    """The tower's input for the images of these rows, pairs first, and the layout of its tokens.

    The layout is None if every image is one view or there are no images. With `fit: native`, images are padded to the
    most patches of any image, `[images, patches, numbers]`.
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
        paired=Segments.of(lengths[: 2 * pairs]),
    )
    return _padded(images, planes, made) if own_shape else (images, made)


def _padded(patches: Tensor, planes: Sequence[OneDiffPlane], made: Planes) -> tuple[Tensor, Planes]:
    """Pads each image to the number of patches of the largest."""
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

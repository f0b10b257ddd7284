"""A micro-batch: what crosses from the data stream to the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onediff.data.planes import Planes
from onediff.data.segments import Segments, each_tensor


@dataclass
class Batch:
    """Rows of tokens with places for images and deltas, the images, and the targets.

    Places are flat indexes into `rows · tokens`, computed where the batch is made, so that the model never asks the
    device how many there are.
    """

    token_ids: Tensor
    """`[rows, tokens]` int64; 0 where an image or delta token goes and where the row is padded."""
    position_ids: Tensor
    """`[rows, tokens]` int64; starts again at 0 with each sample of a packed row."""
    segment_ids: Tensor | None
    """`[rows, tokens]` int64, 0 for padding, 1… for the samples of a packed row; None if no row holds two samples."""
    images: Tensor
    """`[views, 3, size, size]` uint8, in the order of their places; before and after of every pair come first. An image is
    one view, unless `planes` says otherwise."""
    image_places: Tensor
    """`[image tokens]` int64."""
    pairs: int
    """Pairs: images 2b and 2b + 1 are before and after of pair b."""
    delta_places: Tensor
    """`[pairs · delta tokens]` int64."""
    target_places: Tensor
    """`[targets]` int64: where the token that *predicts* the target stands."""
    target_ids: Tensor
    """`[targets]` int64."""
    target_sources: Tensor
    """`[targets]` int64: index of the source that a target comes from, for the loss per source."""
    planes: Planes | None = None
    """Where the images' tokens lie, where images are more than one view or have shapes of their own; `images` are then
    `[images, patches, numbers]` in the latter case."""
    features: Tensor | None = None
    """`[views, layers, tokens, width]`: what the tower gives for the images, where that is read and not computed; `images`
    is then empty."""
    segments: Segments | None = None
    """Where the samples lie in packed rows; None if each row holds one."""
    info: dict[str, Any] = field(default_factory=dict)
    """Not for the model: the samples' ids and places, counts, faults met on the way to them."""

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    @property
    def targets(self) -> int:
        """Target tokens in this batch."""
        return self.target_ids.numel()

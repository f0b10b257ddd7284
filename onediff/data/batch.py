"""The micro-batch that the data loader passes to the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onediff.data.planes import Planes
from onediff.data.segments import Segments, each_tensor


@dataclass
class Batch:
    """Rows of tokens with places for image and delta tokens, the images, and the targets.

    Places are flat indexes into `rows · tokens`. They are computed on the host, so the model never has to synchronise
    with the device to count them.
    """

    token_ids: Tensor
    """`[rows, tokens]` int64; 0 at image tokens, delta tokens and padding."""
    position_ids: Tensor
    """`[rows, tokens]` int64; restarts at 0 for each sample of a packed row."""
    segment_ids: Tensor | None
    """`[rows, tokens]` int64, 0 for padding, 1… for the samples of a packed row; None if no row holds two samples."""
    images: Tensor
    """`[views, 3, size, size]` uint8, in the order of their places, the before and after images of all pairs first. Each
    image is one view, unless `planes` says otherwise."""
    image_places: Tensor
    """`[image tokens]` int64."""
    pairs: int
    """The number of pairs; images 2b and 2b + 1 are the before and after images of pair b."""
    delta_places: Tensor
    """`[pairs · delta tokens]` int64."""
    target_places: Tensor
    """`[targets]` int64: the position that *predicts* each target."""
    target_ids: Tensor
    """`[targets]` int64."""
    target_sources: Tensor
    """`[targets]` int64: the index of each target's source, for the loss per source."""
    planes: Planes | None = None
    """The layout of image tokens for `fit: tiles` and `fit: native`. With `native`, `images` is
    `[images, patches, numbers]`."""
    features: Tensor | None = None
    """`[views, layers, tokens, width]`: the tower's outputs, if they are read from disk instead of computed; `images` is
    then empty."""
    segments: Segments | None = None
    """The samples' spans in packed rows; None if each row holds one sample."""
    info: dict[str, Any] = field(default_factory=dict)
    """Not used by the model: the samples' ids and places, counts, and the faults of skipped samples."""

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    @property
    def targets(self) -> int:
        """Target tokens in this batch."""
        return self.target_ids.numel()

"""Masks as run lengths, in COCO's uncompressed RLE, which pycocotools reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """`mask` [height, width] as `{"size": [height, width], "counts": […]}`: runs down the columns, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges]))
    rest = mask.size - int(counts.sum())
    return {"size": list(mask.shape), "counts": [int(n) for n in counts] + ([rest] if rest else [])}

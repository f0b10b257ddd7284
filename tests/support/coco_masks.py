"""Masks read back by pycocotools."""

from typing import Any

import numpy as np
from pycocotools import mask


def decode_mask(encoded: dict[str, Any]) -> np.ndarray:
    """The mask `[height, width]` of `data_prep.compose.masks.encode_mask`."""
    decoded: np.ndarray = mask.decode(mask.frPyObjects(encoded, *encoded["size"]))
    return decoded.astype(bool)

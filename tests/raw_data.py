"""Small pictures and raw data sets in their own layouts, made for the tests of readers."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, width: int = 40, height: int = 30) -> np.ndarray:
    """A smooth picture `[height, width, 3]`, another one for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * (seed % 5 + 1) * 3), (y * (seed % 7 + 1) * 2), (x + y + seed * 31)]
    return np.stack([channel % 256 for channel in channels], -1).astype(np.uint8)


def encoded(seed: int, form: str = "PNG", width: int = 40, height: int = 30, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(seed, width, height)).save(out, form, **options)
    return out.getvalue()


def put(path: Path, data: bytes | str | object) -> Path:
    """Writes bytes or text as they are, and anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(data, (bytes, str)):
        data = json.dumps(data)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path

"""Small images and raw data sets in their own layouts, made for the tests of readers."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, width: int = 40, height: int = 30) -> np.ndarray:
    """A smooth image `[height, width, 3]`, another one for each seed."""
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


PAIR = {"before": "0.png", "after": "1.png", "caption": "it moved"}
"""A row of a table of pairs."""


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    """Writes rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def numbered_images(folder: Path) -> Path:
    """A folder with images `0.png … 5.png` and `0.jpg … 5.jpg`."""
    for number in range(6):
        put(folder / f"{number}.png", encoded(number))
        put(folder / f"{number}.jpg", encoded(number, "JPEG"))
    return folder


def tar_with(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    """A tar with `0.png` beside it, and the same of `1.png` or something hostile as the member `name`."""
    with tarfile.open(path, "w") as tar:
        tar.add(path.parent / "0.png", "0.png")
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        if kind == tarfile.REGTYPE:
            data = (path.parent / "1.png").read_bytes()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        else:
            tar.addfile(info)
    return path

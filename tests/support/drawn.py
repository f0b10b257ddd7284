"""Images of noise in any size, and samples of them."""

import io

import numpy as np
from PIL import Image

from onediff.data.sample import Sample


def image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(drawn).resize(size, Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def pair(number: int, *sizes: tuple[int, int]) -> Sample:
    files = {role: png(image(size, number)) for role, size in zip(("before", "after"), sizes, strict=False)}
    if len(sizes) == 1:
        files = {"image": files["before"]}
    return Sample(f"{number}", "s", "t", "train", captions=("a red cube was added",), images=files)

"""Embeddings of images by a Hugging Face vision model, and near-duplicates by their cosine."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onediff.data.formats import open_image, to_rgb
from onediff.errors import UserError
from onediff.progress import progress

Vectors = NDArray[np.float32]


class Embedder:
    """The mean over a vision model's last hidden states, scaled to length one."""

    def __init__(self, model: str) -> None:
        """Loads `model`, a name on the hub or a folder, onto the GPU if there is one.

        Raises UserError if it cannot be loaded.
        """
        import torch
        from transformers import AutoImageProcessor, AutoModel

        try:
            self.processor, network = AutoImageProcessor.from_pretrained(model), AutoModel.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise UserError(f"--model {model}: cannot be loaded: {error}") from error
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = getattr(network, "vision_model", network).eval().to(self.device)

    def __call__(self, images: Sequence[Image.Image]) -> Vectors:
        """`[images, width]`."""
        import torch

        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.device)
        with torch.inference_mode():
            states = self.network(pixel_values=pixels).last_hidden_state.float().mean(1)
        found: Vectors = torch.nn.functional.normalize(states, dim=-1).cpu().numpy()
        return found

    def of_samples(self, samples: Iterator[Sequence[bytes]], count: int, batch: int = 32) -> list[Vectors]:
        """`[its images, width]` for each of `count` samples, given as encoded images."""
        found: list[Vectors] = []
        waiting: list[list[Image.Image]] = []

        def embed() -> None:
            vectors = iter(self([image for images in waiting for image in images])) if any(waiting) else iter(())
            for images in waiting:
                rows = [next(vectors) for _ in images]
                found.append(np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32))
            waiting.clear()

        with progress(count, "embedding", "samples") as bar:
            for sample in samples:
                waiting.append([rgb(data) for data in sample])
                if sum(map(len, waiting)) >= batch:
                    embed()
                bar.update()
            embed()
        return found


def rgb(data: bytes) -> Image.Image:
    """An encoded image, upright and in RGB. Raises Pillow's error if it is not an image, or BadSample."""
    with open_image(io.BytesIO(data)) as image:
        return to_rgb(image)


def near_by_cosine(samples: Sequence[Vectors], least: float, block: int = 1024) -> Iterator[tuple[int, int]]:
    """Yields `(i, j)` if sample `i` is a near-duplicate of the earlier `j`: each image's cosine is at least `least`.

    Exact: compares each sample, a block at a time, with every earlier kept one that has the same number of images. Costs
    `samples² × images × width` multiplications and `4 × samples × images × width` bytes.
    """
    by_images: dict[int, list[int]] = defaultdict(list)
    for i, vectors in enumerate(samples):
        if len(vectors):
            by_images[len(vectors)].append(i)
    for numbers in by_images.values():
        stacked = np.stack([samples[i] for i in numbers])  # [samples, images, width]
        kept: list[int] = []
        for start in range(0, len(numbers), block):
            own = stacked[start : start + block]
            twin = np.full(len(own), -1)
            for at in range(0, len(kept), block):
                others = np.array(kept[at : at + block])
                near = _all_near(own, stacked[others], least)
                found = (twin < 0) & near.any(1)
                twin[found] = others[near[found].argmax(1)]
            near = _all_near(own, own, least)
            for at in range(len(own)):
                beside = np.flatnonzero(near[at, :at] & (twin[:at] < 0))
                if twin[at] < 0 and len(beside):
                    twin[at] = start + beside[0]
                if twin[at] < 0:
                    kept.append(start + at)
                else:
                    yield numbers[start + at], numbers[twin[at]]


def _all_near(own: Vectors, others: Vectors, least: float) -> NDArray[np.bool_]:
    """`[own, others]`: whether each image of one is near the other's."""
    near = np.ones((len(own), len(others)), dtype=bool)
    for image in range(own.shape[1]):
        near &= own[:, image] @ others[:, image].T >= least
    return near

"""CLIPScore and RefCLIPScore (Hessel et al., 2021): captions against images and references in the space of a named CLIP.

CLIPScore is 2.5 × max(cosine of caption and image, 0) for the image *after*. It can judge only what is visible there, so the
caption of a removal scores low even if it is right. RefCLIPScore is the harmonic mean with the best cosine among the
references. Both measure whether a caption fits the scene, not whether its change is right.

Costs one pass of the CLIP for each new text and image; vectors are cached on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from onediff.data.images import open_upright
from onediff.evaluation.metrics.kept import Kept, Key
from onediff.evaluation.metrics.metric import Pairs, Unavailable
from onediff.evaluation.metrics.named_model import ModelMetric, short

BATCH = 32
PROMPT = "A photo depicts "


class ClipScore(ModelMetric):
    """A pair's row: 1, CLIPScore, RefCLIPScore."""

    name = "clipscore"
    titles = scores = ("CLIPScore", "RefCLIPScore")
    weight = 2.5
    """Scales the cosine, which is far below 1."""

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        images = images_after(systems[0])
        processor, model = self.loaded("AutoProcessor", "CLIPModel")
        kept = Kept(f"{self.name}-{short(self.model)}")
        texts = {text for one in systems for group in (one.captions, *one.references) for text in group}
        as_text: list[Key] = [(self.version, "text", text) for text in texts]
        as_image: dict[Key, bytes] = {
            (self.version, "image", hashlib.sha256(data).hexdigest()): data for data in images
        }
        known = kept.known([*as_text, *as_image])
        new_texts = [key for key in as_text if key not in known]
        new_images = [key for key in as_image if key not in known]
        found = dict(zip(new_texts, text_vectors(processor, model, [key[2] for key in new_texts]), strict=True))
        found |= zip(new_images, image_vectors(processor, model, [as_image[key] for key in new_images]), strict=True)
        kept.keep(found)
        vectors = {key: np.array(value) for key, value in (known | found).items()}
        return [
            np.array(
                [
                    scored(
                        self.weight, vectors[key], vectors[self.version, "text", caption],
                        [vectors[self.version, "text", reference] for reference in references],
                    )
                    for key, caption, references in zip(
                        [(self.version, "image", hashlib.sha256(data).hexdigest()) for data in images],
                        one.captions, one.references, strict=True,
                    )
                ]
            )
            for one in systems
        ]  # fmt: skip


def images_after(pairs: Pairs) -> list[bytes]:
    """The encoded image after of each pair. Raises Unavailable if one is missing."""
    if pairs.images is None:
        raise Unavailable("it needs images; name their data set with --data")
    found = []
    for pair in pairs.ids:
        images = pairs.images(pair)
        if images is None:
            raise Unavailable(f"pair {pair!r} has no images in the data set")
        found.append(images.after)
    return found


def scored(weight: float, image: np.ndarray, caption: np.ndarray, references: Sequence[np.ndarray]) -> list[float]:
    """[3]: 1, and the scores without and with references, from unit vectors."""
    score = weight * max(float(image @ caption), 0.0)
    best = max(max(float(caption @ reference), 0.0) for reference in references)
    return [1.0, score, 2 * score * best / (score + best) if score + best else 0.0]


def text_vectors(processor: Any, model: Any, texts: Sequence[str]) -> list[list[float]]:
    """Unit vectors of texts, each after the paper's prompt."""
    longest = model.config.text_config.max_position_embeddings
    return _vectors(
        [PROMPT + text for text in texts],
        lambda part: processor(text=part, return_tensors="pt", padding=True, truncation=True, max_length=longest),
        model.get_text_features,
    )


def image_vectors(processor: Any, model: Any, images: Sequence[bytes]) -> list[list[float]]:
    """Unit vectors of encoded images."""
    return _vectors(
        images,
        lambda part: processor(images=[open_upright(data, 1_000_000_000) for data in part], return_tensors="pt"),
        model.get_image_features,
    )


def _vectors(given: Sequence[Any], prepared: Any, features: Any) -> list[list[float]]:
    import torch

    found: list[list[float]] = []
    for start in range(0, len(given), BATCH):
        with torch.inference_mode():
            made = features(**prepared(given[start : start + BATCH]))
            made = getattr(made, "pooler_output", made)
            found += torch.nn.functional.normalize(made.float(), dim=-1).tolist()
    return found


METRIC = ClipScore()

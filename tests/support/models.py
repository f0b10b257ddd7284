"""A OneDiff model with some thousand parameters, and rows for it."""

import torch
from streams import DELTA_TOKENS, IMAGE_TOKENS, SIZE, make_processor, members

from onediff.config.model import ModelConfig
from onediff.data.batch import Batch
from onediff.data.rows import TokenRow, collate
from onediff.data.sample import parse_sample
from onediff.model.onediff import OneDiffModel

TINY = {
    "vision": {
        "config": {
            "model_type": "clip_vision_model",
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 32,
            "image_size": SIZE,
            "patch_size": SIZE // 2,
        },
        "levels": [1, 2, 3],
        "image": {"size": SIZE},
    },
    "delta": {"tokens": DELTA_TOKENS, "layers": 3, "width": 16, "heads": 2, "intermediate": 24},
    "language": {
        "tokenizer": {"vocabulary": 320},
        "config": {
            "model_type": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "vocab_size": 320,
            "max_position_embeddings": 128,
            # Large enough weights for a token to matter to the next.
            "initializer_range": 0.2,
        },
    },
}

NAFLEX = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "num_patches": 16,
    "patch_size": SIZE // 2,
}
FITS = {
    "tiles": {"vision": {**TINY["vision"], "image": {"size": SIZE, "fit": "tiles", "max_tiles": 4}}},
    "native": {"vision": {"config": NAFLEX, "levels": [1, 2, 3], "image": {"fit": "native", "max_patches": 12}}},
}
"""Changes of TINY by `model.vision.image.fit`, for images that are not all seen in one shape."""


def tiny_config() -> ModelConfig:
    config = ModelConfig.model_validate(TINY)
    assert (config.vision.image.size // (SIZE // 2)) ** 2 == IMAGE_TOKENS
    return config


def tiny_model(seed: int = 0) -> OneDiffModel:
    torch.manual_seed(seed)
    return OneDiffModel(tiny_config()).eval()


def rows(*kinds: str) -> list[TokenRow]:
    """Training rows: `pair`, `single` or `text`."""
    processor = make_processor()
    return [processor.row(parse_sample(members(kind, number, "s")), None, 0) for number, kind in enumerate(kinds)]


def batch(*kinds: str) -> Batch:
    return collate(rows(*kinds))

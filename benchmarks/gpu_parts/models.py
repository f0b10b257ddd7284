"""Models and rows of the measured sizes, with random weights and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from onediff.config.model import ModelConfig
from onediff.data.prompts import DELTA, IMAGE
from onediff.data.rows import TokenRow
from onediff.model.onediff import OneDiffModel

CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
    "image_size": 336,
    "patch_size": 14,
}
TINY_TOWER = CLIP_L | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def llama(
    width: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int = 32000
) -> dict[str, Any]:
    """A Llama's configuration."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


@dataclass(frozen=True)
class Size:
    """A language model for CLIP ViT-L/14 at 336 pixels, and how it is trained."""

    name: str
    phase: str
    """`one` trains delta module and projector, `two` all parts"""
    language: dict[str, Any]
    pairs: int
    """pairs of a micro-batch"""
    checkpointing: bool = False
    compiled: bool = False
    """also measured with compiled layers"""

    @property
    def trains(self) -> tuple[str, ...]:
        """Parts that train."""
        return ("delta", "projector") if self.phase == "one" else ("vision", "delta", "projector", "language")


SIZES = (
    Size("0.1B", "one", llama(768, 12, 12, 12, 2048), 16),
    Size("0.1B", "two", llama(768, 12, 12, 12, 2048), 16),
    Size("1B", "two", llama(2048, 16, 32, 8, 8192), 8, checkpointing=True, compiled=True),
    Size("7B", "one", llama(4096, 32, 32, 32, 11008), 8, checkpointing=True),
    Size("7B's layers, four of them", "two", llama(4096, 4, 32, 32, 11008), 8, checkpointing=True),
)
TINY = (
    Size("tiny", "one", llama(64, 2, 2, 2, 96, 512), 2),
    Size("tiny", "two", llama(64, 2, 2, 1, 96, 512), 2, checkpointing=True),
)


def model_config(size: Size, dry: bool) -> ModelConfig:
    """The whole model's configuration."""
    tower = TINY_TOWER if dry else CLIP_L
    delta = {"tokens": 4, "layers": 3, "width": 32, "heads": 2, "intermediate": 48} if dry else {}
    return ModelConfig.model_validate(
        {
            "vision": {
                "config": tower,
                "levels": (1, 2, 3) if dry else (8, 16, 24),
                "image": {"size": tower["image_size"]},
            },
            "delta": delta,
            "language": {"config": size.language, "tokenizer": {"vocabulary": 300}},
        }
    )


def build(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> OneDiffModel:
    """The model with random weights, created on `device`: a 7B model would take minutes on the host."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = OneDiffModel(config)
    finally:
        torch.set_default_dtype(before)
    return model.to(device)


def pair_rows(config: ModelConfig, count: int, phase: str, seed: int = 0, prompt_only: bool = False) -> list[TokenRow]:
    """Rows of pairs with typical lengths: two captions in phase one; in phase two, one third short captions of changes and
    two thirds long conversations."""
    random = torch.Generator().manual_seed(seed)
    side = config.vision.image.size // config.vision.config["patch_size"]  # type: ignore[index]
    vocabulary = config.language.config["vocab_size"]  # type: ignore[index]
    scale = 1 if config.vision.image.size > 100 else 20
    made = []
    for number in range(count):
        long = phase == "two" and number % 3 != 0
        low, high = (200, 700) if long else (15, 60)
        answer = max(2, int(torch.randint(low, high, (1,), generator=random)) // scale)
        before, after = 40 // scale + 1, 20 // scale + 1
        words = torch.randint(3, vocabulary, (before + after + answer,), generator=random)
        places = [IMAGE] * (2 * side * side) + [DELTA] * config.delta.tokens
        ids = torch.cat([words[:before], torch.tensor(places), words[before:]])
        if prompt_only:
            ids = ids[: len(ids) - answer]
        is_target = torch.zeros(len(ids), dtype=torch.bool)
        if not prompt_only:
            is_target[-answer:] = True
        shape = (2, 3, config.vision.image.size, config.vision.image.size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        made.append(TokenRow(ids, is_target, images, (side * side,) * 2, True, 0, (f"{number}",)))
    return made

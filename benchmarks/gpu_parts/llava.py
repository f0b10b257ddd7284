"""The same pairs in the LLaVA way: Hugging Face's LLaVA, padded batches, all logits, the loss read after each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from onediff.config.model import ModelConfig
from onediff.data.prompts import DELTA, IMAGE
from onediff.data.rows import TokenRow


class Llava:
    """LLaVA with the same tower and language model; it has no delta tokens."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        vision, language = dict(config.vision.config or {}), dict(config.language.config or {})
        self.place = language["vocab_size"]
        """the placeholder of an image token"""
        language["vocab_size"] += 1
        for fields in (vision, language):
            fields.pop("model_type")
        llava = LlavaConfig(
            vision_config=CLIPVisionConfig(**vision),
            text_config=LlamaConfig(**language),
            image_token_id=self.place,
            image_token_index=self.place,
            image_seq_length=(config.vision.image.size // vision["patch_size"]) ** 2,
            vision_feature_layer=config.vision.output_level,
            vision_feature_select_strategy="default",
        )
        with torch.device(device):
            self.model: Any = LlavaForConditionalGeneration._from_config(llava, attn_implementation="sdpa", dtype=dtype)
        self.model.to(device)
        self.device, self.dtype = device, dtype
        self.mean = torch.tensor(config.vision.image.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(config.vision.image.std).view(1, 3, 1, 1)

    def collated(self, rows: list[TokenRow], left: bool = False) -> dict[str, Any]:
        """Rows padded to the longest, images normalised by the processor on the host; on the CPU."""
        words = [row.token_ids[row.token_ids != DELTA] for row in rows]
        targets = [row.is_target[row.token_ids != DELTA] for row in rows]
        longest = max(len(ids) for ids in words)

        def padded(parts: list[Tensor], value: int) -> Tensor:
            out = torch.full((len(parts), longest), value, dtype=torch.int64)
            for number, part in enumerate(parts):
                here = slice(longest - len(part), None) if left else slice(0, len(part))
                out[number, here] = part
            return out

        ids = [torch.where(part == IMAGE, self.place, part) for part in words]
        labels = [torch.where(t, part, -100) for part, t in zip(words, targets, strict=True)]
        images = torch.cat([row.images for row in rows])
        return {
            "input_ids": padded(ids, 0),
            "attention_mask": padded([torch.ones_like(part) for part in words], 0),
            "labels": padded(labels, -100),
            "pixel_values": (images.float() / 255 - self.mean) / self.std,
        }

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The mean loss of a batch."""
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        moved["pixel_values"] = moved["pixel_values"].to(self.dtype)
        return self.model(**moved, use_cache=False).loss

    @torch.no_grad()
    def generate(self, batch: dict[str, Any], **options: Any) -> Tensor:
        """Hugging Face's `generate` on left-padded prompts."""
        moved = {name: tensor.to(self.device) for name, tensor in batch.items() if name != "labels"}
        moved["pixel_values"] = moved["pixel_values"].to(self.dtype)
        return self.model.generate(**moved, **options)

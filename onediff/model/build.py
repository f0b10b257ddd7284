"""Builds the parts that must match the model: tokenizer, prompts, preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onediff.config.data import DataConfig
from onediff.config.model import ModelConfig
from onediff.data.prompts import Prompter
from onediff.data.rows import Processor
from onediff.errors import UserError
from onediff.model.architecture import architecture
from onediff.model.tokenizer import load_tokenizer
from onediff.model.vision import check_fits, side_of, vision_architecture


def architecture_only(config: ModelConfig) -> ModelConfig:
    """The same model without pretrained weights, for a model whose weights come from a checkpoint."""
    vision = vision_architecture(config.vision).to_dict()
    language = architecture(config.language, "model.language").to_dict()
    tokenizer = config.language.tokenizer or config.language.name
    return config.model_copy(
        update={
            "vision": config.vision.model_copy(update={"name": None, "config": vision}),
            "delta": config.delta.model_copy(update={"bert": None}),
            "language": config.language.model_copy(update={"name": None, "config": language, "tokenizer": tokenizer}),
        }
    )


def build_processor(model: ModelConfig, data: DataConfig, learned_tokenizer: Path) -> tuple[Processor, Any]:
    """The processor for this model, and its tokenizer.

    Raises UserError if the images do not match the tower, or if the tokenizer has more pieces than the language model has
    embeddings.
    """
    tokenizer = load_tokenizer(model.language, learned_tokenizer)
    vocabulary = architecture(model.language, "model.language").get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"model.language: the tokenizer has {len(tokenizer)} pieces, but the language model has {vocabulary} "
            "embeddings; use the model's own tokenizer, or raise vocab_size"
        )
    prompter = Prompter(tokenizer, data.prompt, model.delta.tokens)
    tower = vision_architecture(model.vision)
    check_fits(model.vision, tower)
    return Processor(prompter, model.vision.image, data, side_of(tower.patch_size)), tokenizer

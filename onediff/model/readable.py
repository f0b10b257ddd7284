"""Checks pretrained parts against a configuration: names and shapes of weights, without reading them, and tokenizer ids.

    python -m onediff.model.readable PART… < CONFIG_AS_JSON

prints a JSON list with one line for each of these parts that does not match, and for the tokenizer if it does not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from onediff.config.data import DataConfig
from onediff.config.model import DeltaConfig, LanguageConfig, ModelConfig, NewTokenizer, PretrainedPart, VisionConfig
from onediff.config.run import RunConfig
from onediff.errors import UserError
from onediff.model.bert import bert_and_source
from onediff.model.build import build_processor
from onediff.model.lean import transformers
from onediff.model.vision import architecture, check_fits, vision_architecture
from onediff.parallel.pretrained import Pretrained
from onediff.parallel.pretrained_files import PretrainedFiles


def faults(model: ModelConfig, data: DataConfig, parts: Collection[str]) -> Iterator[str]:
    """One line for each of `parts` that does not match, and for the tokenizer if it does not."""
    checks: list[Callable[[], None]] = [lambda: tokenizer(model, data)]
    if "vision" in parts:
        checks.append(lambda: vision(model.vision))
    if "language" in parts:
        checks.append(lambda: language(model.language))
    if "delta" in parts:
        checks.append(lambda: delta(model.delta))
    for check in checks:
        try:
            check()
        except UserError as fault:
            yield str(fault)


def tokenizer(model: ModelConfig, data: DataConfig) -> None:
    """Raises UserError if the tokenizer cannot be read or has more pieces than the language model has embeddings."""
    if not isinstance(model.language.tokenizer, NewTokenizer):
        build_processor(model, data, Path())


def vision(part: VisionConfig) -> None:
    """Raises UserError if the tower's files do not match its architecture."""
    arch = vision_architecture(part)
    check_fits(part, arch)
    compare(transformers.AutoModel, arch, part)


def language(part: LanguageConfig) -> None:
    """The same for the language model."""
    compare(transformers.AutoModelForCausalLM, architecture(part, "model.language"), part)


def delta(part: DeltaConfig) -> None:
    """The same for the BERT that initialises the delta module."""
    if part.bert is not None:
        bert_and_source(part.bert, part.layers, part.width)


def compare(auto: Any, arch: Any, part: PretrainedPart) -> None:
    """Raises UserError that names tensors which the files of `part` lack or have in another shape."""
    if part.name is not None:
        with torch.device("meta"):
            model = auto.from_config(arch)
        Pretrained(PretrainedFiles(part.name, part.revision), model)


if __name__ == "__main__":
    config = RunConfig.model_validate(json.load(sys.stdin))
    print(json.dumps(list(dict.fromkeys(faults(config.model, config.data, sys.argv[1:])))))

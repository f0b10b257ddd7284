"""Whether pretrained parts belong to a configuration: names and shapes of weights, unread, and ids of the tokenizer.

    python -m onediff.model.readable PART… < CONFIG_AS_JSON

prints a JSON list with a line for each part whose weights are read and do not fit, and for the tokenizer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from onediff.config.model import NewTokenizer, PretrainedPart
from onediff.config.run import RunConfig
from onediff.errors import UserError
from onediff.model.bert import bert_and_source
from onediff.model.build import build_processor
from onediff.model.lean import transformers
from onediff.model.vision import architecture, check_fits, vision_architecture
from onediff.parallel.pretrained import Pretrained
from onediff.parallel.pretrained_files import PretrainedFiles


def faults(config: RunConfig, parts: Collection[str]) -> Iterator[str]:
    """What does not fit, in a line each, where the weights of `parts` are read."""
    for check in (tokenizer, vision, language, delta):
        if check is tokenizer or check.__name__ in parts:
            try:
                check(config)
            except UserError as fault:
                yield str(fault)


def tokenizer(config: RunConfig) -> None:
    """Raises UserError for a tokenizer that cannot be read, or with ids that the language model has no embeddings for."""
    if not isinstance(config.model.language.tokenizer, NewTokenizer):
        build_processor(config.model, config.data, Path())


def vision(config: RunConfig) -> None:
    """Raises UserError for a tower whose files are not those of its architecture."""
    arch = vision_architecture(config.model.vision)
    check_fits(config.model.vision, arch)
    compare(transformers.AutoModel, arch, config.model.vision)


def language(config: RunConfig) -> None:
    """The same for the language model."""
    compare(
        transformers.AutoModelForCausalLM, architecture(config.model.language, "model.language"), config.model.language
    )


def delta(config: RunConfig) -> None:
    """The same for the BERT that the delta module starts from."""
    part = config.model.delta
    if part.bert is not None:
        bert_and_source(part.bert, part.layers, part.width)


def compare(auto: Any, arch: Any, part: PretrainedPart) -> None:
    """Raises UserError that names what the files of `part` lack or have in another shape."""
    if part.name is not None:
        with torch.device("meta"):
            model = auto.from_config(arch)
        Pretrained(PretrainedFiles(part.name, part.revision), model)


if __name__ == "__main__":
    found = faults(RunConfig.model_validate(json.load(sys.stdin)), sys.argv[1:])
    print(json.dumps(list(dict.fromkeys(found))))

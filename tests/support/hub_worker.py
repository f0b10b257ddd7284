"""Loads every model of `public_models` by name from the hub at HF_ENDPOINT, and compares it with transformers.

Prints a JSON object: what is wrong with each model, None if nothing is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from public_models import FAMILIES, TEXTS, Repository

from onediff.config.model import LanguageConfig, VisionConfig
from onediff.hub.fetch import fetch
from onediff.hub.files import lacking
from onediff.hub.named import Named
from onediff.model.architecture import architecture
from onediff.model.bert import bert_and_source
from onediff.model.onediff import build_language
from onediff.model.tokenizer import load_tokenizer
from onediff.model.vision import vision_architecture
from onediff.parallel.materialize import place
from onediff.parallel.placement import Placement
from onediff.parallel.topology import Topology
from onediff.ranks import Ranks

ALONE = Placement(Topology(Ranks(), 1, None))


def wrong(repository: Repository) -> str | None:
    """The differences from the model as loaded by transformers."""
    named = Named("model.part.name", repository.name, tokenizer=bool(repository.tokenizer))
    folder = fetch([named])
    if lacking(named, folder):
        return f"{lacking(named, folder)} lacking"
    taken = {path.name for path in folder.iterdir()}
    wanted = {"config.json", *repository.weights, *repository.files}
    index = {name for name in taken if name.endswith(".index.json")}
    if taken != wanted | index or len(index) != (len(repository.weights) > 1):
        return f"{sorted(taken ^ wanted)} fetched or left"
    ours, theirs = models(repository)
    for kind in ("named_parameters", "named_buffers"):
        for (name, a), (other, b) in zip(getattr(ours, kind)(), getattr(theirs, kind)(), strict=True):
            if name != other or not torch.equal(a, b):
                return f"{name} differs"
    return wrong_tokenizer(repository) if repository.tokenizer else None


def models(repository: Repository) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The model as loaded by this project and by transformers."""
    if repository.kind == "bert":
        theirs = transformers.BertModel.from_pretrained(repository.name, add_pooling_layer=False, dtype=torch.float32)
        bert, source = bert_and_source(repository.name, layers=2, width=32)
        return place(bert, source, ALONE.topology), theirs
    if repository.kind == "language":
        config = LanguageConfig(name=repository.name)
        found = architecture(config, "model.language")
        assert found.model_type == repository.config["model_type"]
        theirs = transformers.AutoModelForCausalLM.from_pretrained(repository.name, dtype=torch.float32)
        return build_language(config, placement=ALONE), theirs
    found = vision_architecture(VisionConfig(name=repository.name))
    ours = ALONE.build(transformers.AutoModel, found, repository.name)
    whole = transformers.AutoModel.from_pretrained(repository.name, dtype=torch.float32)
    return ours, getattr(whole, "vision_model", whole)


def wrong_tokenizer(repository: Repository) -> str | None:
    """What the tokenizer does wrong on plain text."""
    tokenizer = load_tokenizer(LanguageConfig(name=repository.name), Path("nowhere"))
    text = TEXTS[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids) != text or len(ids) > len(text) / 2 or tokenizer.eos_token != "</s>":
        return f"{text!r} becomes {ids}, which is {tokenizer.decode(ids)!r}; ends with {tokenizer.eos_token}"
    return None


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = {}
    for repository in FAMILIES:
        try:
            found[repository.name] = wrong(repository)
        except Exception as error:
            found[repository.name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))
    sys.stdout.flush()

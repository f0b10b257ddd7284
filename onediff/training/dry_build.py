"""Finds errors in a configuration that training would refuse, by building all that depends on it alone, on the meta device.

`onediff plan` and `onediff launch` run this, so that errors show before a job is queued.

    python -m onediff.training.dry_build [--begun] < CONFIG_AS_JSON

prints a JSON list with one line per fault. Pretrained weights are compared by names and shapes, unless the run has `--begun`
and takes its weights from checkpoints. Nothing is fetched: files that are not on this machine are not checked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from onediff.config.model import ModelConfig, PretrainedPart
from onediff.config.run import RunConfig
from onediff.errors import UserError
from onediff.evaluation.metrics import chosen
from onediff.hub.files import lacking
from onediff.hub.named import Named, named_in
from onediff.model.architecture import architecture, described
from onediff.model.bert import bert_and_source
from onediff.model.build import architecture_only, build_processor
from onediff.model.lean import transformers
from onediff.model.onediff import OneDiffModel
from onediff.model.vision import vision_architecture
from onediff.parallel.pretrained import Pretrained
from onediff.parallel.pretrained_files import PretrainedFiles
from onediff.runs.address import Address
from onediff.training.init import fitting_origins
from onediff.training.measures import directed
from onediff.training.start import check_model


def faults(config: RunConfig, begun: bool = False) -> Iterator[str]:
    """One line per error that training would report when the run begins, or when one that has `begun` continues.

    A run that has begun reads neither pretrained weights nor `init`.
    """
    model, there, here = on_this_machine(config.model)
    config = config.model_copy(update={"model": model})
    vision, language, delta = model.vision, model.language, model.delta
    parts: dict[str, PretrainedPart] = {"model.vision.name": vision, "model.language.name": language}
    checks: list[Callable[[], object]] = [partial(measurements, config)]
    if all(part.config is not None or where in there for where, part in parts.items()):
        checks.append(partial(whole, config))
        if "model.language.tokenizer" in here:
            checks.append(lambda: build_processor(model, config.data, Path()))
    sources = config.init.addresses if config.init is not None else {}
    if not begun and sources and all(map(_exists, sources.values())):
        checks.append(lambda: fitting_origins(config))
    read = () if begun else here - {f"model.{part}.name" for part in sources}
    if "model.vision.name" in read:
        checks.append(lambda: _compare(transformers.AutoModel, vision_architecture(vision), vision))
    if "model.language.name" in read:
        arch = partial(architecture, language, "model.language")
        checks.append(lambda: _compare(transformers.AutoModelForCausalLM, arch(), language))
    if "model.delta.bert" in read and "delta" not in sources:
        checks.append(lambda: bert_and_source(str(delta.bert), delta.layers, delta.width))
    found = []
    for check in checks:
        try:
            check()
        except UserError as fault:
            found.append(str(fault))
    yield from dict.fromkeys(found)


def on_this_machine(model: ModelConfig) -> tuple[ModelConfig, set[str], set[str]]:
    """`model` with local folders in place of names, the keys of parts with a `config.json`, and those of complete parts."""
    wanted = {one.where: one for one in named_in(model)}
    if isinstance(model.language.tokenizer, str | None):
        name = model.language.tokenizer or model.language.name
        tokenizer = Named("model.language.tokenizer", str(name), weights=False, tokenizer=True, config=False)
        wanted[tokenizer.where] = tokenizer
    folders = {where: folder for where, one in wanted.items() if (folder := one.folder()) is not None}
    for where, folder in folders.items():
        _, part, key = where.split(".")
        section = getattr(model, part).model_copy(update={key: str(folder)})
        model = model.model_copy(update={part: section})
    there = {where for where, folder in folders.items() if (folder / "config.json").is_file()}
    return model, there, {where for where, folder in folders.items() if not lacking(wanted[where], folder)}


def whole(config: RunConfig) -> None:
    """Builds the model on the meta device and checks each phase. Raises UserError as training would."""
    model = architecture_only(config.model)
    with torch.device("meta"):
        OneDiffModel(model, norms="plain")
    for name, phase in config.phases.items():
        check_model(model, phase, name, config.of_phase(name).parallel)


def measurements(config: RunConfig) -> None:
    """Raises UserError for a metric that cannot be loaded, or a `best.metric` that is not measured."""
    chosen(config.evaluation.metrics)
    for name, phase in config.phases.items():
        if phase.best is not None:
            directed(phase.best, name, phase.validation.sets or list(phase.mix), config.evaluation.metrics)


def _exists(address: str) -> bool:
    try:
        Address.of(address).require()
    except UserError:
        return False  # reported as missing elsewhere
    return True


def _compare(auto: Any, arch: Any, part: PretrainedPart) -> None:
    """Raises UserError that names what the files of `part` lack or have in another shape."""
    assert part.name is not None
    with torch.device("meta"):
        model = described(auto, arch)
    Pretrained(PretrainedFiles(part.name), model)


if __name__ == "__main__":
    print(json.dumps(list(faults(RunConfig.model_validate(json.load(sys.stdin)), begun="--begun" in sys.argv))))

"""Initialises parts of a model from another run or an export; each rank reads its own ranges."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from onediff.config.compose import load_run
from onediff.config.data import PromptConfig
from onediff.config.difference import differences, flat, in_one_line
from onediff.config.model import LoraConfig, ModelConfig
from onediff.config.run import RunConfig
from onediff.config.training import InitConfig
from onediff.errors import UserError
from onediff.model.build import architecture_only
from onediff.model.onediff import OneDiffModel
from onediff.model.saved import OWN_PARTS, description
from onediff.model.tokenizer import load_tokenizer
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.parallel.block import BlockRange
from onediff.parallel.materialize import InMemory
from onediff.parallel.weights import put_weights
from onediff.runs.address import Address
from onediff.runs.folder import RunFolder
from onediff.tracking.state import State
from onediff.training.checkpoint import load_weights, read_manifest
from onediff.training.checkpoint.reader import CheckpointReader
from onediff.training.checkpoint.weights import Weights, part_of
from onediff.training.found import found

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
HEADS = ("heads", "num_attention_heads", "num_key_value_heads", "head_dim", "model_type")
"""Settings that change the result although the shapes of the weights stay the same."""
BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Keys in Hugging Face configurations that do not affect results."""


class OfRun:
    """The weights of one checkpoint of a run."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.found = found(address)
        self.place = self.found.checkpoint
        config = load_run(RunFolder(address.folder).config)
        self.language, self.prompt = config.model.language, config.data.prompt
        self.model = architecture_only(config.model)
        self.learned = RunFolder(address.folder).tokenizer

    @cached_property
    def shapes(self) -> Shapes:
        """Full shape of each parameter, adapters merged."""
        return Weights(CheckpointReader(self.place, read_manifest(self.place))).shapes

    def tokenizer(self) -> Any:
        """What its language model reads."""
        return load_tokenizer(self.language, self.learned)

    def parts_for(self, model: ModelConfig, parts: Collection[str]) -> tuple[ModelConfig, frozenset[str]]:
        """`model` without weights in `parts`, and the parts to fill after it is built."""
        bare = architecture_only(model)
        kept = {part: getattr(bare, part) for part in parts if hasattr(bare, part)}
        return model.model_copy(update=kept), frozenset(parts)

    def fill(self, model: OneDiffModel, parts: Collection[str], lora: LoraConfig | None) -> None:
        """Fills `parts` of a built model. Collective. Raises UserError on every rank."""
        load_weights(model, self.place, lora=lora, parts=parts)

    def lineage(self) -> dict[str, str]:
        """The origin of the weights: the run's identity, and its phase's run in MLflow, if known."""
        record = self.address.folder / "tracking" / "run.json"
        known = {"id": json.loads(record.read_text())["id"]} if record.is_file() else {}
        sent = State.load(self.address.folder).streams.get(f"phase-{self.found.phase}")
        return known | ({"mlflow_run_id": sent.run_id} if sent and sent.run_id else {})


class OfExport:
    """The weights of a saved model."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.place = address.folder
        saved = description(self.place)
        self.prompt, self.trained = saved.prompt, saved.trained
        named = saved.model.with_parts(*(str(self.place / part) for part in ("vision", "language", "tokenizer")))
        self.language = named.language
        self.model = architecture_only(named)

    @cached_property
    def shapes(self) -> Shapes:
        """Full shape of each parameter."""
        return full_shapes(self.model)

    def tokenizer(self) -> Any:
        """What its language model reads."""
        return load_tokenizer(self.language, self.place / "tokenizer")

    def parts_for(self, model: ModelConfig, parts: Collection[str]) -> tuple[ModelConfig, frozenset[str]]:
        """`model` with tower and language model read from this folder when it is built, if they are among `parts`."""
        bare = architecture_only(model)
        kept: dict[str, Any] = {
            part: getattr(bare, part).model_copy(update={"name": str(self.place / part), "revision": None})
            for part in ("vision", "language")
            if part in parts
        }
        kept |= {"delta": bare.delta} if "delta" in parts else {}
        return model.model_copy(update=kept), frozenset()

    def fill(self, model: OneDiffModel, parts: Collection[str], lora: LoraConfig | None) -> None:
        """Fills delta module and projector of a built model, if they are among `parts`. Collective."""
        with raise_on_all_ranks():
            for part in set(parts) & set(OWN_PARTS):
                file = self.place / f"{part}.safetensors"
                try:
                    with safe_open(file, "pt") as stored:
                        put_weights(getattr(model, part), partial(_fill_from, stored))
                except (OSError, SafetensorError) as error:
                    raise UserError(f"init.{part}: {file}: cannot be read: {error}; export it again") from None

    def lineage(self) -> dict[str, str]:
        """The origin of the weights, as the export states it."""
        return {key: str(value) for key, value in self.trained.items()}


def _fill_from(stored: Any, name: str, piece: BlockRange, target: torch.Tensor) -> None:
    InMemory({name: stored.get_tensor(name)}).fill(name, piece, target)


Origin = OfRun | OfExport


def origin_of(address: Address) -> Origin:
    """The run or saved model that an address names. Raises UserError if there is neither."""
    address.require()
    return OfRun(address) if address.is_run else OfExport(address)


class Start:
    """What the parts named in `init` start from."""

    def __init__(self, config: RunConfig, learned_tokenizer: Path) -> None:
        """Raises UserError that names the part if one does not fit the run's model."""
        self.origins = fitting_origins(config)
        if "language" in self.origins:
            check_words(self.origins["language"], load_tokenizer(config.model.language, learned_tokenizer))
            check_prompt(self.origins["language"], config.data.prompt)
        self.model, self.later = config.model, frozenset[str]()
        for origin, parts in self._by_origin():
            self.model, later = origin.parts_for(self.model, parts)
            self.later |= later
            log.info("%s: from %s", ", ".join(parts), origin.place)

    def fill(self, model: OneDiffModel, lora: LoraConfig | None) -> None:
        """Fills the parts of the model that `self.model` describes. Collective."""
        for origin, parts in self._by_origin():
            origin.fill(model, parts, lora)

    def tags(self) -> dict[str, str]:
        """The lineage for MLflow: the folder of each part, and its run if known."""
        tags = {"started_from": ", ".join(str(origin.place) for origin, _ in self._by_origin())}
        for part, origin in self.origins.items():
            tags[f"init.{part}"] = str(origin.place)
            tags |= {f"init.{part}.{key}": value for key, value in origin.lineage().items()}
        return tags

    def _by_origin(self) -> list[tuple[Origin, list[str]]]:
        unique = list({id(origin): origin for origin in self.origins.values()}.values())
        return [(one, [part for part, origin in self.origins.items() if origin is one]) for one in unique]


def fitting_origins(config: RunConfig) -> dict[str, Origin]:
    """The origin of each part named in `init`. Raises UserError for a part that does not fit the run's model."""
    assert config.init is not None
    origins: dict[str, Origin] = {}
    opened: dict[Path, Origin] = {}
    for part, text in config.init.addresses.items():
        origin = origin_of(Address.of(text))
        origins[part] = opened.setdefault(origin.place, origin)
    bare, own = architecture_only(config.model), full_shapes(config.model)
    for part, origin in origins.items():
        check_shapes(part, origin, own)
        check_settings(part, origin, bare)
    return origins


def full_shapes(config: ModelConfig) -> Shapes:
    """Shape of each parameter of a model without adapters; takes no memory."""
    with torch.device("meta"):
        model = OneDiffModel(architecture_only(config), norms="plain")
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_shapes(part: str, origin: Origin, own: Shapes) -> None:
    """Raises UserError for the first parameter of a part that has another shape or exists on one side only."""
    theirs, ours = ({name: s for name, s in shapes.items() if part_of(name) == part} for shapes in (origin.shapes, own))
    for name in [*ours, *theirs]:
        if ours.get(name) == theirs.get(name):
            continue
        if name in ours and name in theirs:
            what = f"{name} is {theirs[name]} there and {ours[name]} in this run"
        else:
            what = f"{name} is missing {'there' if name in ours else 'in the model of this run'}"
        like = f"use the same model.{part}" if part != "projector" else "use the same parts on both sides of it"
        raise UserError(f"init.{part}: {origin.address}: {what}; {like}, or leave {part} out of init")


def check_settings(part: str, origin: Origin, bare: ModelConfig) -> None:
    """Refuses settings that make the same weights compute something else; warns about other differences."""
    if not hasattr(bare, part):
        return
    theirs, ours = (_settings(getattr(model, part).model_dump(mode="json")) for model in (origin.model, bare))
    changed = differences(theirs, ours)
    for key, (old, new) in changed.items():
        if key.rpartition(".")[2] in HEADS:
            raise UserError(
                f"init.{part}: {origin.address}: model.{part}.{key} is {old} there and {new} in this run; use the same "
                f"value, or leave {part} out of init"
            )
    if changed:
        log.warning("init.%s: settings differ from those of %s: %s", part, origin.address, in_one_line(changed))


def _settings(section: dict[str, Any]) -> dict[str, Any]:
    """The settings of a part that its weights depend on, flattened."""
    left_out = ("name", "revision", "tokenizer", "bert", "dropout")
    return {
        key: value
        for key, value in flat(section).items()
        if key not in left_out and key.rpartition(".")[2] not in BOOKKEEPING and not key.startswith("tokenizer.")
    }


def check_words(origin: Origin, own: Any) -> None:
    """Raises UserError if the run's token ids are not those that the language model was trained with."""
    theirs, ours = origin.tokenizer().get_vocab(), own.get_vocab()
    other = sum(ours.get(word) != number for word, number in theirs.items())
    if other or len(theirs) != len(ours):
        raise UserError(
            f"init.language: {origin.address}: uses another tokenizer ({other:,} of its {len(theirs):,} tokens have "
            "another id here, or none); set model.language.tokenizer to its tokenizer, or leave language out of init"
        )


def check_prompt(origin: Origin, own: PromptConfig) -> None:
    """Warns if the run's prompts differ from those that the language model was trained with."""
    theirs, ours = (flat(prompt.model_dump(mode="json")) for prompt in (origin.prompt, own))
    if changed := differences(theirs, ours):
        log.warning("init.language: data.prompt differs from that of %s: %s", origin.address, in_one_line(changed))


def take_tokenizer(init: InitConfig, target: Path) -> None:
    """Copies the tokenizer of the language model in `init` to `target`. Raises UserError."""
    assert init.language is not None
    origin = origin_of(Address.of(init.language))
    folder = origin.learned if isinstance(origin, OfRun) else origin.place / "tokenizer"
    if folder.is_dir():
        shutil.copytree(folder, target)
    else:
        origin.tokenizer().save_pretrained(target)

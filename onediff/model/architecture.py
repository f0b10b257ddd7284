"""The Hugging Face configuration of the vision tower and the language model, and models made from it."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from onediff.config.difference import flat
from onediff.config.model import PretrainedPart
from onediff.config.section import nearest
from onediff.errors import UserError
from onediff.model.lean import transformers

NUMBER_AS_TEXT = re.compile(r"got str \(value: '[+-]?\d+[eE]")
"""Matches the error of transformers for a number that YAML read as text."""


def architecture(part: PretrainedPart, where: str) -> transformers.PretrainedConfig:
    """The Hugging Face configuration of a part, from `config` or `name`.

    Raises UserError, with the key `where`, if the model type is unknown, a key or value is wrong, or `name` cannot be read.
    """
    if part.config is not None:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        fields: dict[str, Any] = dict(part.config)
        kind = fields.pop("model_type")
        if kind not in CONFIG_MAPPING:
            close = get_close_matches(str(kind), CONFIG_MAPPING.keys(), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else "; docs/parallel.md lists supported types"
            raise UserError(f"{where}.config.model_type: unknown {kind!r}{hint}")
        _check_keys(fields, CONFIG_MAPPING[kind], where)
        try:
            return CONFIG_MAPPING[kind](**fields)
        except (StrictDataclassError, TypeError, ValueError) as error:
            hint = "; YAML reads 1e-06 as text, and 1.0e-06 as a number" if NUMBER_AS_TEXT.search(str(error)) else ""
            raise UserError(f"{where}.config: {' '.join(str(error).split())}{hint}") from None
    assert part.name is not None
    if (folder := Path(part.name)).is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"{where}.name: cannot read {part.name!r}: it has no config.json; write the architecture as {where}.config"
        )
    try:
        return transformers.AutoConfig.from_pretrained(part.name, revision=part.revision, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{where}.name: cannot read {part.name!r}: {first}") from None


def _check_keys(fields: dict[str, Any], config_class: type[transformers.PretrainedConfig], where: str) -> None:
    """Raises UserError for a misspelt key, which the class would silently ignore.

    Other unknown keys pass, because configurations on the hub contain keys that their class does not read.
    """
    known = config_class().to_dict().keys() | config_class.attribute_map.keys()
    for key in fields.keys() - known:
        if close := get_close_matches(key, known, n=1, cutoff=0.85):
            raise UserError(f"{where}.config: unknown key {key!r} (did you mean {close[0]!r}?)")


def described(auto: Any, arch: transformers.PretrainedConfig, **options: Any) -> Any:
    """A model of the class that `auto` (`AutoModel`, …) chooses for `arch`, with random weights.

    Raises UserError if its class cannot build a model from these values.
    """
    try:
        return auto.from_config(arch, **options)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        part = "vision" if auto is transformers.AutoModel else "language"
        if hint := _unknown_name(error, arch):
            raise UserError(f"model.{part}.config.{hint}") from error
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"model.{part}: transformers cannot build a {arch.model_type} from this configuration: {why}"
        ) from error


def _unknown_name(error: Exception, arch: transformers.PretrainedConfig) -> str | None:
    """The key of `arch` whose value transformers does not know, such as an activation, with the nearest known name."""
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if not isinstance(error, KeyError):
        return None
    name = error.args[0]
    key = next((key for key, value in flat(arch.to_dict()).items() if isinstance(value, str) and value == name), None)
    if key is None:
        return None
    known = ROPE_INIT_FUNCTIONS if key.startswith("rope") else ACT2FN
    return f"{key}: unknown {name!r}{nearest(name, known)}"

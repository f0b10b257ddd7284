"""Maps stored tensors to the parameters of a Hugging Face model, by transformers' own rules for renamed weights.

The names of stored tensors depend on the release of transformers that wrote them, on whether the model has a head, and on
whether it is part of a larger model. transformers has rules for each model (`conversion_mapping`). This module applies the
rules to names only, so that a rank can read just its part of each parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch

from onediff.errors import UserError
from onediff.parallel.block import BlockRange
from onediff.parallel.materialize import InMemory
from onediff.parallel.pretrained_files import PretrainedFiles

NAMED = 5
"""Number of names that an error lists."""

PLAIN = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that are not quantised."""

UNREAD = "pooler."
"""Weights that a tower's files may lack, because they are not used. Published classifiers lack them."""

COMPARED = 64
"""Number of rows compared to check that two stored tensors are equal."""


@dataclass(frozen=True)
class Converted:
    """Parameters computed from stored tensors, such as experts that are stored one by one."""

    first: str
    """The first parameter of the result."""
    converter: Any
    """transformers' `WeightConverter`."""
    keys: tuple[tuple[str, str], ...]
    """Pattern and name of each input tensor."""

    def tensors(self, model: Any, read: Any) -> dict[str, torch.Tensor]:
        """The resulting parameters; `read(key)` returns a stored tensor."""
        converter = deepcopy(self.converter)
        for pattern, key in self.keys:
            converter.add_tensor(self.first, key, pattern, read(key))
        made = converter.convert(self.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass
class Origins:
    """The origins of a model's parameters and buffers among stored tensors with a common prefix."""

    shapes: dict[str, tuple[int, ...]]
    """The stored shape of each."""
    of: dict[str, str | Converted]
    """The stored tensor of each, or how to compute it."""
    missing: list[str] = field(default_factory=list)
    """Parameters that the files lack."""
    differing: list[str] = field(default_factory=list)
    """Parameters with another shape in the files."""

    @property
    def wrong(self) -> int:
        """The number of parameters that cannot be read."""
        return len(self.missing) + len(self.differing)


class Pretrained:
    """A source of the weights of `model`, which may be on the meta device, from its published files."""

    def __init__(self, files: PretrainedFiles, model: Any) -> None:
        """Raises UserError, with names, if the files lack parameters, have them in another shape, or quantised."""
        self.files, self.model = files, model
        self.origins = find(files, model)
        _check_types(files, model, self.origins)
        _check_tied(files, model, self.origins)
        self._made: tuple[Converted, dict[str, torch.Tensor]] | None = None

    def fill(self, name: str, piece: BlockRange, target: torch.Tensor) -> None:
        """Copies the range `piece` of the parameter or buffer `name` into the flat tensor `target`.

        Computed parameters are computed whole, one group at a time. Parameters that the files may lack keep their values.
        """
        origin = self.origins.of.get(name)
        if origin is None:
            return
        if isinstance(origin, str):
            self.files.fill(origin, piece, target)
            return
        if self._made is None or self._made[0] is not origin:
            self._made = None
            self._made = origin, origin.tensors(self.model, self.files.whole)
        InMemory({name: self._made[1][name]}).fill(name, piece, target)


def find(files: PretrainedFiles, model: Any) -> Origins:
    """The origins of the parameters of `model` in `files`, as transformers reads them, else below a common prefix.

    Raises UserError if some are missing.
    """
    tried: list[Origins] = []
    for prefix in ("", *_prefixes(files.shapes)):
        tried.append(_below(prefix, files, model))
        if not tried[-1].wrong:
            return tried[-1]
    raise UserError(_complaint(files, model, min(tried, key=lambda origins: origins.wrong)))


def _prefixes(keys: Iterable[str]) -> list[str]:
    """Possible prefixes of a model's names within a larger model, shortest first."""
    found = set()
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts)):
            if parts[length - 1].isdigit():
                break
            found.add(".".join(parts[:length]) + ".")
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _below(prefix: str, files: PretrainedFiles, model: Any) -> Origins:
    """The origins of the model's parameters among tensors whose names start with `prefix`."""
    state = model.state_dict()
    stored = [key.removeprefix(prefix) for key in files.shapes if key.startswith(prefix)]
    found = Origins({}, {})
    for name, converter, keys in _assigned(stored, model, state):
        if converter is None:
            found.of[name] = prefix + keys[-1][1]
            found.shapes[name] = files.shapes[prefix + keys[-1][1]]
            continue
        origin = Converted(name, converter, tuple((pattern, prefix + key) for pattern, key in keys))
        for made, tensor in _shapes_out(origin, files, model).items():
            found.of[made], found.shapes[made] = origin, tuple(tensor.shape)
    _tie(found, model)
    buffers = dict(model.named_buffers())
    may_lack = re.compile("|".join(f"(?:{pattern})" for pattern in model._keys_to_ignore_on_load_missing or ["(?!)"]))
    for name, expected in state.items():
        if name in found.of:
            if found.shapes[name] != tuple(expected.shape):
                found.differing.append(name)
        elif not name.startswith(UNREAD) and not (name in buffers and may_lack.search(name)):
            found.missing.append(name)
    return found


def _assigned(
    stored: list[str], model: Any, state: dict[str, torch.Tensor]
) -> Iterator[tuple[str, Any, list[tuple[str, str]]]]:
    """Yields each name of the model with its converter, if any, and the pattern and name of each of its tensors.

    Matches them as `transformers.core_model_loading.convert_and_load_state_dict_in_model` does.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    found: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if name in state:
            converter = None if pattern is None else by_pattern[pattern]
            found.setdefault(name, (converter, []))[1].append((pattern or key, key))
    for name, (converter, keys) in found.items():
        yield name, converter, keys


def _shapes_out(origin: Converted, files: PretrainedFiles, model: Any) -> dict[str, torch.Tensor]:
    try:
        return origin.tensors(model, lambda key: torch.empty(files.shapes[key], device="meta"))
    except (RuntimeError, ValueError, KeyError, IndexError):
        return {}  # incompatible shapes; the results count as missing


def _tie(found: Origins, model: Any) -> None:
    """Gives all names of a tied parameter the same origin, because files may store any or all of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        there = next((name for name in tied if name in found.of), None)
        for name in tied:
            if there is not None and name not in found.of:
                found.of[name], found.shapes[name] = found.of[there], found.shapes[there]


def _check_types(files: PretrainedFiles, model: Any, found: Origins) -> None:
    """Raises UserError for quantised weights, which would be noise if read as plain numbers."""
    about = getattr(model.config, "quantization_config", None)
    for name, parameter in model.named_parameters():
        origin = found.of.get(name)
        key = origin if isinstance(origin, str) else origin.keys[0][1] if origin is not None else None
        kind = None if key is None or not parameter.is_floating_point() else files.dtype(key)
        if about is not None or (kind is not None and kind not in PLAIN):
            raise UserError(
                f"{files.name}: its weights are quantised ({kind} in {key}) and cannot be trained; "
                "use the model before quantisation"
            )


def _check_tied(files: PretrainedFiles, model: Any, found: Origins) -> None:
    """Raises UserError if the configuration ties two tensors that differ."""
    first: dict[int, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = found.of.get(name)
        if not isinstance(key, str):
            continue
        other, stored = first.setdefault(id(parameter), (name, key))
        if key != stored and not torch.equal(files.rows(key, COMPARED), files.rows(stored, COMPARED)):
            raise UserError(
                f"{files.name}: {other} and {name} differ in its files, but the configuration ties them; "
                "set `tie_word_embeddings: false` in `config`"
            )


def _complaint(files: PretrainedFiles, model: Any, found: Origins) -> str:
    kind, total = type(model).__name__, len(model.state_dict())
    if found.differing:
        name = found.differing[0]
        wanted = tuple(model.state_dict()[name].shape)
        others = f" and {len(found.differing) - 1} more" if len(found.differing) > 1 else ""
        return (
            f"{files.name}: {name} is {list(found.shapes[name])} in its files, but {list(wanted)} in the configured "
            f"{kind}{others}; correct the sizes in the configuration, or remove `config`"
        )
    listed = ", ".join(found.missing[:NAMED]) + (", …" if len(found.missing) > NAMED else "")
    return (
        f"{files.name}: its files lack {len(found.missing)} of the {total} tensors of a {kind}: {listed}; "
        "they are incomplete, or belong to another model"
    )

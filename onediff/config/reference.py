"""Every key of a configuration with its type, default and meaning, read from the sections themselves."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from onediff.config.run import RunConfig
from onediff.config.section import nearest
from onediff.errors import UserError

NAME = "<name>"
"""Stands in a key for a name that the user gives, as of a phase or a data set."""


class Key(NamedTuple):
    """One key of the configuration."""

    path: str
    """`phases.<name>.lr`"""
    section: type[BaseModel]
    """The section that holds it."""
    kind: str
    """Its type in words."""
    default: str
    """As YAML, or `required`."""
    meaning: str
    """The docstring below the field."""


def keys(section: type[BaseModel] = RunConfig, path: str = "") -> Iterator[Key]:
    """The keys of `section`, then those of the sections in it, each in the order in which they are written."""
    for name, field in section.model_fields.items():
        meaning = " ".join((field.description or "").split())
        yield Key(path + name, section, kind_of(field.annotation), _default(field), meaning)
    for name, field in section.model_fields.items():
        for inner, below in _sections_in(field.annotation):
            yield from keys(inner, f"{path}{name}.{below}")


def key_named(path: str) -> Key:
    """The key that `path` means; it may contain a name that the user gives. Raises UserError with the nearest key."""
    known = {key.path: key for key in keys()}
    if path in known:
        return known[path]
    for key in known.values():
        pattern, given = key.path.split("."), path.split(".")
        if len(pattern) == len(given) and all(p in (NAME, g) for p, g in zip(pattern, given, strict=True)):
            return key
    # A last word alone is enough where only one key ends in it.
    ending = [key for key in known.values() if key.path.rsplit(".", 1)[-1] == path]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UserError(f"{path}: several keys end so: {', '.join(key.path for key in ending)}")
    raise UserError(f"{path}: no such key{nearest(path, known)}")


def kind_of(annotation: Any) -> str:
    """A type in words: `int`, `` `crop` or `pad` ``, `list of str`, `mapping of str to float`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind_of(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_of(choice) for choice in arguments))
    if origin in (list, tuple):
        count = f"{len(arguments)} " if origin is tuple and Ellipsis not in arguments else ""
        return f"list of {count}{kind_of(arguments[0])}"
    if origin is dict:
        return "mapping" if arguments[1] is Any else f"mapping of names to {kind_of(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return getattr(annotation, "__name__", str(annotation))


def reference() -> str:
    """The page `docs/configuration.md`."""
    lines = [
        "# Configuration",
        "",
        "Made by `onediff config --reference` from the sections themselves; do not edit it. `onediff config explain KEY`",
        "says the same about one key, and `onediff config show CONFIG` prints a configuration in full.",
    ]
    heading = None
    for key in keys():
        parent = key.path.rpartition(".")[0]
        if parent != heading:
            heading = parent
            about = " ".join((key.section.__doc__ or "").split())
            lines += ["", f"## {parent or 'The run'}", "", about, "", "| key | type | default | meaning |"]
            lines += ["| --- | --- | --- | --- |"]
        name = key.path.rpartition(".")[2]
        cells = (f"`{name}`", key.kind, f"`{key.default}`", key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _sections_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The sections that a field holds, and what its keys begin with: nothing, or a name of the user's."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
        return
    named = f"{NAME}." if typing.get_origin(annotation) is dict else ""
    for argument in typing.get_args(annotation):
        for section, below in _sections_in(argument):
            yield section, named + below


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
    if isinstance(value, BaseModel):
        return "as below"
    return json.dumps(value, default=str, ensure_ascii=False)

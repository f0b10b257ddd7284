"""The base class of configuration sections: typed, strict, frozen, with a docstring under each field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from onediff.config.renamed import new_name, removal_hint
from onediff.errors import UserError

S = TypeVar("S", bound="Section")
# Valid names of runs, phases and jobs, which become parts of paths and commands.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Section(BaseModel):
    """A section of the configuration. Unknown keys and wrong types are errors; instances are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` with the known name closest to `word`, or all known names if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def validated(section: type[S], values: Any, where: str) -> S:
    """Builds `section` from plain `values`, as read from YAML.

    Raises UserError with one line for the first fault, which starts with `where` (a file or a flag) and names the key.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {first_fault(section, error)}") from None


def first_fault(section: type[BaseModel], error: ValidationError) -> str:
    """One line for the first fault in a pydantic error, with the nearest known key for an unknown one."""
    fault = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    if fault["type"] == "extra_forbidden":
        if renamed := new_name(fault["loc"]):
            return f"{path!r} is now called {renamed!r}; write {'.'.join([*path.split('.')[:-1], renamed])}"
        if hint := removal_hint(fault["loc"]):
            return f"{path!r} {hint}"
        return f"unknown key {path!r}{nearest(str(fault['loc'][-1]), _fields_at(section, fault['loc'][:-1]))}"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not path:
        return message
    given = fault["input"]
    if fault["type"] in ("tuple_type", "list_type") and isinstance(given, str | int | float):
        return f"{path}: must be a list; write [{given}]"
    shown = "" if fault["type"] in ("missing", "value_error") or isinstance(given, dict) else f", got {given!r}"
    return f"{path}: {message}{shown}"


def _fields_at(section: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The field names of the section at `path` below `section`."""
    import typing

    here: Any = section
    for part in path:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = here.model_fields[str(part)].annotation
        else:
            arguments = typing.get_args(here)
            here = arguments[-1] if arguments else here
        candidates = [here, *typing.get_args(here)]
        here = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), here)
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []

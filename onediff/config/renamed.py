"""Keys that once had another name.

A file that a user wrote is refused with the new name. A file that the project wrote itself, beside a run or a saved model,
is read under the new names, so that older runs resume and older models load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RENAMED = {"model.vision.picture": "image"}
"""Full path of an old key → its new name in the same section. A `*` stands for any name of a phase or a data set."""


def new_name(path: Sequence[str | int]) -> str | None:
    """The present name of the old key at `path`, or None when the key never had another name."""
    for old, new in RENAMED.items():
        parts = old.split(".")
        if len(parts) == len(path) and all(part in ("*", str(given)) for part, given in zip(parts, path, strict=True)):
            return new
    return None


def under_new_names(values: Any, path: tuple[str, ...] = ()) -> Any:
    """`values`, as a run or a saved model wrote them, with the old keys renamed."""
    if not isinstance(values, dict):
        return values
    return {
        (new_name((*path, key)) or key) if isinstance(key, str) else key: under_new_names(value, (*path, str(key)))
        for key, value in values.items()
    }

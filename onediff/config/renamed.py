"""Renamed and removed keys.

Users' files with such keys are refused, with the new name or a hint. Files that OneDiff wrote itself, for a run or a saved
model, are read with the new names and without removed keys that had no effect, so older runs resume and older models load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RENAMED = {
    "model.vision.picture": "image",
    "evaluation.heatmaps": "attention_maps",
    "training.peer_copies.every": "repeat_at_most",
}
"""Full path of an old key → its new name in the same section. A `*` matches any name of a phase or a data set."""


GONE = {"training.fp8": "was removed: no measurement on a GPU showed a gain. Remove the key; layers multiply in bf16"}
"""Full path of a removed key → a hint."""


def removal_hint(path: Sequence[str | int]) -> str | None:
    """The hint for the key at `path` if it was removed, else None."""
    return GONE.get(".".join(map(str, path)))


def new_name(path: Sequence[str | int]) -> str | None:
    """The current name of the renamed key at `path`, or None if it was never renamed."""
    for old, new in RENAMED.items():
        parts = old.split(".")
        if len(parts) == len(path) and all(part in ("*", str(given)) for part, given in zip(parts, path, strict=True)):
            return new
    return None


def under_new_names(values: Any, path: tuple[str, ...] = ()) -> Any:
    """`values` from a run or a saved model, with old keys renamed."""
    if not isinstance(values, dict):
        return values
    return {
        (new_name((*path, key)) or key) if isinstance(key, str) else key: under_new_names(value, (*path, str(key)))
        for key, value in values.items()
        if value or not removal_hint((*path, str(key)))
    }

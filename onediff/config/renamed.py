"""Keys that once had another name, or are gone.

A file that a user wrote is refused with the new name, or with what to do without the key. A file that the project wrote
itself, beside a run or a saved model, is read under the new names and without keys that asked for nothing, so that older
runs resume and older models load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RENAMED = {
    "model.vision.picture": "image",
    "evaluation.heatmaps": "attention_maps",
    "training.peer_copies.every": "repeat_at_most",
}
"""Full path of an old key → its new name in the same section. A `*` stands for any name of a phase or a data set."""


GONE = {"training.fp8": "is gone: it was never measured to pay on a GPU. Leave it out; layers multiply in bf16"}
"""Full path of a key that is gone → what to say of it."""


def farewell(path: Sequence[str | int]) -> str | None:
    """What to say of the key at `path` where it is gone, else None."""
    return GONE.get(".".join(map(str, path)))


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
        if value or not farewell((*path, str(key)))
    }

"""Training objectives by name, built in or from another package. None is imported until it is used."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from onediff.config.entry_points import load
from onediff.config.section import nearest
from onediff.errors import UserError

GROUP = "onediff.objectives"
BUILT_IN = EntryPoint("captions", "onediff.training.objectives.captions:CaptionObjective", GROUP)


def objectives() -> dict[str, EntryPoint]:
    """All objectives by name; none takes the place of a built-in one."""
    return {point.name: point for point in (*entry_points(group=GROUP), BUILT_IN)}


def check_objective(name: str) -> None:
    """Raises UserError, with the names there are, for an objective that is not one of them."""
    if name not in (known := objectives()):
        raise UserError(f"no objective {name!r}{nearest(name, known)}")


def objective_class(name: str) -> Any:
    """The class of that name; see `onediff.training.objectives.Objective`. Raises UserError."""
    check_objective(name)
    return load(objectives()[name], "objective")

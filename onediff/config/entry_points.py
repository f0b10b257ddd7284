"""Loads what another package announces by an entry point: a reader, a metric, an objective, a rule for couples."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from onediff.errors import UserError


def load(point: EntryPoint, kind: str) -> Any:
    """The object that `point` names.

    Raises UserError, with the package and the cause, when it cannot be imported.
    """
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = f"package {point.dist.name}" if point.dist else "a package"
        raise UserError(f"{kind} {point.name!r}: {package} announces {point.value}, but {error}") from error

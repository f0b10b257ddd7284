"""Implementations by name, built in or provided by other packages as entry points: readers, metrics, objectives, …"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from onediff.config.section import nearest
from onediff.errors import UserError


class Plugins(NamedTuple):
    """The implementations of one kind. Each is imported only when it is used."""

    group: str
    """The entry point group, such as `onediff.objectives`."""
    kind: str
    """Name of the kind in error messages."""
    built_in: Mapping[str, str]
    """Name → `module:object`; other packages cannot replace these."""
    otherwise: str = ""
    """Text appended to the error for an unknown name."""

    def points(self) -> dict[str, EntryPoint]:
        """All implementations by name."""
        own = {name: EntryPoint(name, value, self.group) for name, value in self.built_in.items()}
        return self.provided() | own

    def provided(self) -> dict[str, EntryPoint]:
        """Those that other packages add, by name."""
        return {point.name: point for point in entry_points(group=self.group) if point.name not in self.built_in}

    def check(self, name: str) -> None:
        """Raises UserError with the nearest known name if `name` is unknown."""
        if name not in (known := self.points()):
            raise UserError(f"no {self.kind} {name!r}{nearest(name, known)}{self.otherwise}")

    def load(self, name: str) -> Any:
        """The implementation with this name. Raises UserError if it is unknown or cannot be imported."""
        self.check(name)
        return load(self.points()[name], self.kind)


def load(point: EntryPoint, kind: str) -> Any:
    """The object that `point` names.

    Raises UserError, with the package and the cause, if it cannot be imported.
    """
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = f"package {point.dist.name}" if point.dist else "a package"
        raise UserError(f"{kind} {point.name!r}: {package} announces {point.value}, but {error}") from error

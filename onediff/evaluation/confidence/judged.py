"""A caption with its confidence or warning, and what it replaces."""

from __future__ import annotations

from typing import Any, NamedTuple


class Judged(NamedTuple):
    """A caption, how likely it is right, and a warning; without calibration, the caption alone."""

    caption: str
    confidence: float | None = None
    """Share of such captions that were right on held-out pairs; None without calibration, and for unfamiliar images."""
    warning: str | None = None
    """Says that the images are unlike those that the model was trained on; None otherwise."""
    instead_of: str | None = None
    """The model's own caption, if it told a change that is not to be believed and was replaced; None otherwise."""

    def as_json(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in self._asdict().items() if value is not None}

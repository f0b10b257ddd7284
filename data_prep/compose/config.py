"""Settings for composing photographs and cut-outs, and for the changes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_prep.scenes.config import DistractorsConfig, Share, Weight
from onediff.config.section import Section

ChangeType = Literal[
    "add", "remove", "move", "replace", "recolour", "resize", "flip", "blur", "brighten", "crop", "none"
]


class ComposeConfig(Section):
    """Photographs with a few cut-outs, in pairs with one known change."""

    width: Annotated[int, Field(ge=64, le=2048)] = 256
    """Width of an image, in pixels."""
    height: Annotated[int, Field(ge=64, le=2048)] = 256
    """Height of an image, in pixels."""
    min_objects: Annotated[int, Field(ge=1, le=6)] = 2
    """Fewest cut-outs on a photograph (before the change)."""
    max_objects: Annotated[int, Field(ge=1, le=6)] = 4
    """Most cut-outs on a photograph (before the change)."""
    changes: dict[ChangeType, Weight] = {
        "add": 1.0,
        "remove": 1.0,
        "move": 1.0,
        "replace": 1.0,
        "recolour": 1.0,
        "resize": 1.0,
        "flip": 1.0,
        "blur": 1.0,
        "brighten": 1.0,
        "crop": 1.0,
        "none": 1.0,
    }
    """Relative frequency of each type of change; omitted types do not occur."""
    distractors: DistractorsConfig = DistractorsConfig(viewpoint=0.015, light=0.08, noise=3.0, jpeg=70)
    """Differences between two images that are not changes."""
    shadow: Share = 0.4
    """How much light the shadow of a cut-out takes away."""
    match: Share = 0.15
    """How far a cut-out's mean colour and contrast are shifted towards the photograph's."""
    wordings: Annotated[int, Field(ge=1, le=5)] = 3
    """Number of wordings of a caption; each sample lists them in random order."""

    @model_validator(mode="after")
    def _possible(self) -> ComposeConfig:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects {self.min_objects} is above max_objects {self.max_objects}")
        if not sum(self.changes.values()) > 0:
            raise ValueError("changes: no weight is above zero; set at least one")
        return self

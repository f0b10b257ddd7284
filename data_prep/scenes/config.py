"""Settings for the look of rendered scenes, their changes, and their captions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onediff.config.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
ChangeType = Literal["add", "remove", "move", "recolour", "resize", "replace", "swap", "several", "none"]
BackgroundType = Literal["plain", "gradient", "texture", "photograph"]


class DistractorsConfig(Section):
    """Differences between two images that are not changes, drawn independently for each pair."""

    probability: Share = 0.5
    """How often each distractor is applied."""
    viewpoint: Annotated[float, Field(ge=0, le=0.05)] = 0.025
    """Largest shift of the camera, as a share of the image's side; it also zooms by up to this much."""
    light: Annotated[float, Field(ge=0, le=0.5)] = 0.12
    """Largest relative change of brightness, of each colour's share of it, and of its slope across the image."""
    noise: Annotated[float, Field(ge=0, le=50)] = 4.0
    """Largest standard deviation of noise in each image, in grey levels."""
    jpeg: Annotated[int, Field(ge=10, le=100)] = 60
    """Lowest JPEG quality of a compressed image; 100 leaves images alone."""


class ScenesConfig(Section):
    """Images of a few plain solids, in pairs with a known change or alone."""

    width: Annotated[int, Field(ge=32, le=2048)] = 64
    """Width of an image, in pixels."""
    height: Annotated[int, Field(ge=32, le=2048)] = 64
    """Height of an image, in pixels."""
    min_objects: Annotated[int, Field(ge=2, le=6)] = 2
    """Fewest objects in a scene (before the change)."""
    max_objects: Annotated[int, Field(ge=2, le=6)] = 5
    """Most objects in a scene (before the change)."""
    alike: Share = 0.0
    """How often an object takes its colour from another one in the scene. A model that looks an object up by its colour, not
    by its place, then names the wrong shape."""
    changes: dict[ChangeType, Weight] = {
        "add": 1.0,
        "remove": 1.0,
        "move": 1.0,
        "recolour": 1.0,
        "resize": 1.0,
        "replace": 1.0,
        "swap": 1.0,
        "several": 1.0,
        "none": 1.5,
    }
    """Relative frequency of each type of change; omitted types do not occur."""
    backgrounds: dict[BackgroundType, Weight] = {"plain": 1.0, "gradient": 1.0, "texture": 1.0}
    """Relative frequency of each type of background. `photograph` uses those in scikit-image."""
    distractors: DistractorsConfig = DistractorsConfig()
    """Differences between two images that are not changes."""
    names: Literal["needed", "full"] = "needed"
    """A pair's captions name objects by colour and shape, and also by size and material if this is `full` or if they
    cannot be told apart otherwise. Captions of single images are always full."""
    wordings: Annotated[int, Field(ge=1, le=5)] = 3
    """Maximum number of wordings of a caption; each sample lists them in random order."""

    @model_validator(mode="after")
    def _possible(self) -> ScenesConfig:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects {self.min_objects} is above max_objects {self.max_objects}")
        for name in ("changes", "backgrounds"):
            if not sum(getattr(self, name).values()) > 0:
                raise ValueError(f"{name}: no weight is above zero; set at least one")
        return self

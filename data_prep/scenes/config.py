"""Settings for the look of rendered scenes, their changes, and their captions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_prep.scenes.things import Likeness
from onediff.config.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
Twins = Annotated[float, Field(ge=0, le=0.9)]  # of one colour and shape there are only four looks
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


class TrainConfig(Section):
    """What differs in the split `train`, so that a model practises difficult scenes; the rest stays the same."""

    alike: Share | None = None
    """How often an object takes its colour from another one."""
    twins: Twins | None = None
    """How often an object takes its colour and its shape from another one."""
    changes: dict[ChangeType, Weight] | None = None
    """Relative frequency of each type of change; omitted types do not occur."""


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
    by its place, then names the wrong shape. At 1, a scene has one colour, and no two objects can `swap`."""
    twins: Twins = 0.0
    """How often an object takes both its colour and its shape from another one in the scene, so that only size or material
    tell the two apart and captions name them."""
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
    train: TrainConfig = TrainConfig()
    """What differs in the split `train`."""

    def of(self, split: str) -> ScenesConfig:
        """The settings of one split."""
        return self.model_copy(update=self.train.model_dump(exclude_none=True)) if split == "train" else self

    @property
    def likeness(self) -> Likeness:
        """How much new objects are like others."""
        return Likeness(self.alike, self.twins)

    @model_validator(mode="after")
    def _possible(self) -> ScenesConfig:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects {self.min_objects} is above max_objects {self.max_objects}")
        for part, name in ((self, "changes"), (self, "backgrounds"), (self.train, "changes")):
            weights = getattr(part, name)
            if weights is not None and not sum(weights.values()) > 0:
                where = f"train.{name}" if part is self.train else name
                raise ValueError(f"{where}: no weight is above zero; set at least one")
        return self

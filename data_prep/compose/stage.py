"""The content of an image: cut-outs at places on a photograph, and how the camera sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.compose.library import Background, Cutout, Library, Solid
from data_prep.scenes.distractors import STILL, Camera
from data_prep.scenes.things import COORDINATES, PLACES
from onediff.errors import UserError

JITTER = 0.04
SMALL, LARGE = (0.16, 0.20), (0.28, 0.34)
"""Longest side of a cut-out, as a share of the image's shorter side: two ranges, so that a resize is recognisable."""


@dataclass(frozen=True)
class Piece:
    """One cut-out on the image. It has the same `number` before and after the change."""

    number: int
    cutout: Cutout | Solid
    place: int
    offset: tuple[float, float]
    scale: float
    colour: str | None = None
    mirrored: bool = False
    blurred: bool = False

    @property
    def is_large(self) -> bool:
        return self.scale >= LARGE[0]

    @property
    def centre(self) -> tuple[float, float]:
        """Its centre, as shares of the image's width and height."""
        row, column = divmod(self.place, 3)
        return COORDINATES[column] + self.offset[0], COORDINATES[row] + self.offset[1]


@dataclass(frozen=True)
class Stage:
    """The whole content of an image. `gain` multiplies its brightness; `is_blurred` applies to the photograph alone."""

    background: Background
    pieces: tuple[Piece, ...]
    is_blurred: bool = False
    gain: float = 1.0
    camera: Camera = STILL


def draw_stage(rng: np.random.Generator, library: Library, count: int) -> Stage:
    """`count` cut-outs with different names at different places on a photograph."""
    background = library.backgrounds[int(rng.integers(len(library.backgrounds)))]
    pieces: tuple[Piece, ...] = ()
    for place in rng.permutation(len(PLACES))[:count]:
        pieces += (draw_piece(rng, library, int(place), pieces),)
    return Stage(background, pieces)


def draw_piece(rng: np.random.Generator, library: Library, place: int, others: tuple[Piece, ...]) -> Piece:
    """A cut-out for `place` whose name cannot be confused with that of any of `others`."""
    number = max((other.number for other in others), default=-1) + 1
    for _ in range(1000):
        cutout = library.cutouts[int(rng.integers(len(library.cutouts)))]
        if not any(alike(cutout.name, other.cutout.name) for other in others):
            return Piece(number, cutout, place, draw_offset(rng), draw_scale(rng, bool(rng.integers(2))))
    raise UserError(
        f"the names of the cut-outs are too similar: no other one can appear with {others[0].cutout.name!r}"
    )


def alike(one: str, other: str) -> bool:
    """Whether one name could stand for the other: "apple" could mean a red apple."""
    a, b = set(one.split()), set(other.split())
    return a <= b or b <= a


def draw_offset(rng: np.random.Generator) -> tuple[float, float]:
    across, down = rng.uniform(-JITTER, JITTER, 2)
    return float(across), float(down)


def draw_scale(rng: np.random.Generator, is_large: bool) -> float:
    return float(rng.uniform(*(LARGE if is_large else SMALL)))

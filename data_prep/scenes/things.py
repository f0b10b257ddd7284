"""The objects of a scene: their attributes, their nine possible places, and how scenes are drawn at random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

COLOURS = {
    "red": (214, 32, 36),
    "orange": (247, 134, 22),
    "yellow": (250, 224, 50),
    "green": (40, 158, 56),
    "cyan": (64, 208, 218),
    "blue": (40, 76, 214),
    "purple": (142, 50, 186),
    "white": (240, 240, 240),
}
SHAPES = ("cube", "sphere", "cylinder", "cone")
MATERIALS = ("shiny", "matte")
SIZES = {"small": 0.175, "large": 0.29}
"""Diameter of an object, as a share of the image's shorter side."""
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
"""The cells of a 3 x 3 grid in reading order."""
COORDINATES = (0.19, 0.5, 0.81)
"""Centres of the grid's columns and rows, as shares of the image's width and height."""
JITTER = 0.025
TURNS = 6


@dataclass(frozen=True)
class Thing:
    """One object. It has the same `number` before and after the change; `turn` is its rotation in steps of 90 / TURNS
    degrees; `offset` is its distance from the centre of its place, as shares of the sides."""

    number: int
    size: str
    colour: str
    material: str
    shape: str
    place: int
    offset: tuple[float, float] = (0.0, 0.0)
    turn: int = 0

    @property
    def look(self) -> tuple[str, str, str, str]:
        """Its appearance regardless of its place: size, colour, material, shape."""
        return self.size, self.colour, self.material, self.shape

    @property
    def centre(self) -> tuple[float, float]:
        """Its centre, as shares of the image's width and height."""
        row, column = divmod(self.place, 3)
        return COORDINATES[column] + self.offset[0], COORDINATES[row] + self.offset[1]


Things = tuple[Thing, ...]


class Likeness(NamedTuple):
    """How often a new object takes its colour from another one, and how often its colour and its shape."""

    alike: float = 0.0
    twins: float = 0.0


BY_CHANCE = Likeness()


def draw_scene(rng: np.random.Generator, count: int, likeness: Likeness = BY_CHANCE) -> Things:
    """`count` objects in different places, all with different looks."""
    places = rng.permutation(len(PLACES))[:count]
    things: Things = ()
    for place in places:
        things += (draw_thing(rng, int(place), things, likeness),)
    return things


def draw_thing(rng: np.random.Generator, place: int, others: Things, likeness: Likeness = BY_CHANCE) -> Thing:
    """An object for `place` that looks unlike each of `others`, with the next free number."""
    number = max((other.number for other in others), default=-1) + 1
    looks = {other.look for other in others}
    while True:
        size, colour, material, shape = (
            pick(rng, kinds) for kinds in (tuple(SIZES), tuple(COLOURS), MATERIALS, SHAPES)
        )
        if likeness.alike and others and rng.random() < likeness.alike:
            colour = pick(rng, tuple(other.colour for other in others))
        if likeness.twins and others and rng.random() < likeness.twins:
            twin = others[int(rng.integers(len(others)))]
            colour, shape = twin.colour, twin.shape
        if (size, colour, material, shape) not in looks:
            turn = int(rng.integers(TURNS))
            return settle(rng, Thing(number, size, colour, material, shape, place, turn=turn))


def settle(rng: np.random.Generator, thing: Thing) -> Thing:
    """`thing`, slightly off the centre of its place."""
    across, down = rng.uniform(-JITTER, JITTER, 2)
    return replace(thing, offset=(float(across), float(down)))


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """One of `choices`, with equal probability."""
    return choices[int(rng.integers(len(choices)))]

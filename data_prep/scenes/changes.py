"""Changes between the image before and the image after.

Every change keeps the objects distinguishable and cannot be mistaken for another type: a replacement always has
another shape, only objects of different shape and colour swap, and no object appears where another has disappeared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data_prep.scenes.config import ChangeType
from data_prep.scenes.things import (
    BY_CHANCE,
    COLOURS,
    PLACES,
    SHAPES,
    Likeness,
    Thing,
    Things,
    draw_thing,
    pick,
    settle,
)


class SceneChange(NamedTuple):
    """One change: the affected objects before and after, in the same order if they exist in both."""

    type: ChangeType
    old: Things
    new: Things


class SceneSituation(NamedTuple):
    """The context of the next change: the scene so far, the changed objects, the occupied places, and how much a new
    object is like another one."""

    now: Things
    before: Things
    changed: frozenset[int]
    taken: frozenset[int]
    likeness: Likeness = BY_CHANCE


def draw_changes(
    rng: np.random.Generator, kind: ChangeType, before: Things, likeness: Likeness = BY_CHANCE
) -> tuple[list[SceneChange], Things] | None:
    """Changes of type `kind` to the scene `before`, and the scene after them; None if the scene allows none."""
    if kind == "none":
        return [], before
    kinds: list[ChangeType] = [kind]
    if kind == "several":
        # Each change needs another object; a third change is rare, to keep captions short.
        count = 3 if len(before) > 3 and rng.random() < 0.25 else 2
        kinds = [SINGLE[int(i)] for i in rng.permutation(len(SINGLE))[:count]]
    situation = SceneSituation(before, before, frozenset(), frozenset(thing.place for thing in before), likeness)
    changes = []
    for single in kinds:
        change = DRAW[single](rng, situation)
        if change is None:
            return None
        changes.append(change)
        situation = _after(situation, change)
    return changes, situation.now


def _after(situation: SceneSituation, change: SceneChange) -> SceneSituation:
    """The situation after `change`."""
    gone = {thing.number for thing in change.old}
    now = tuple(thing for thing in situation.now if thing.number not in gone) + change.new
    return SceneSituation(
        now,
        situation.before,
        situation.changed | gone | {thing.number for thing in change.new},
        situation.taken | {thing.place for thing in change.new},
        situation.likeness,
    )


def _candidates(rng: np.random.Generator, situation: SceneSituation) -> list[Thing]:
    """The objects that have not changed yet, in random order."""
    still = [thing for thing in situation.now if thing.number not in situation.changed]
    return [still[int(i)] for i in rng.permutation(len(still))]


def _free_place(rng: np.random.Generator, situation: SceneSituation) -> int:
    free = sorted(set(range(len(PLACES))) - situation.taken)
    return free[int(rng.integers(len(free)))]


def _is_new(thing: Thing, situation: SceneSituation) -> bool:
    """Whether nothing else looks like `thing`, now or before."""
    return all(thing.look != other.look for other in situation.now + situation.before)


def _add(rng: np.random.Generator, situation: SceneSituation) -> SceneChange | None:
    thing = draw_thing(rng, _free_place(rng, situation), situation.now + situation.before, situation.likeness)
    # If an object of the same shape and colour had disappeared, this would be a move.
    same = any((thing.shape, thing.colour) == (other.shape, other.colour) for other in situation.before)
    return None if same else SceneChange("add", (), (thing,))


def _remove(rng: np.random.Generator, situation: SceneSituation) -> SceneChange | None:
    return next((SceneChange("remove", (thing,), ()) for thing in _candidates(rng, situation)), None)


def _move(rng: np.random.Generator, situation: SceneSituation) -> SceneChange | None:
    for thing in _candidates(rng, situation):
        moved = settle(rng, replace(thing, place=_free_place(rng, situation)))
        return SceneChange("move", (thing,), (moved,))
    return None


def _recolour(rng: np.random.Generator, situation: SceneSituation) -> SceneChange | None:
    for thing in _candidates(rng, situation):
        painted = replace(thing, colour=pick(rng, tuple(colour for colour in COLOURS if colour != thing.colour)))
        if _is_new(painted, situation):
            return SceneChange("recolour", (thing,), (painted,))
    return None


def _resize(rng: np.random.Generator, situation: SceneSituation) -> SceneChange | None:
    for thing in _candidates(rng, situation):
        resized = replace(thing, size="small" if thing.size == "large" else "large")
        if _is_new(resized, situation):
            return SceneChange("resize", (thing,), (resized,))
    return None


def _replace(rng: np.random.Generator, situation: SceneSituation) -> SceneChange | None:
    for thing in _candidates(rng, situation):
        other = draw_thing(rng, thing.place, situation.now + situation.before, situation.likeness)
        other = replace(other, shape=pick(rng, tuple(shape for shape in SHAPES if shape != thing.shape)))
        if _is_new(other, situation):
            return SceneChange("replace", (thing,), (other,))
    return None


def _swap(rng: np.random.Generator, situation: SceneSituation) -> SceneChange | None:
    candidates = _candidates(rng, situation)
    for i, one in enumerate(candidates):
        for two in candidates[:i]:
            if one.shape != two.shape and one.colour != two.colour:
                there = replace(one, place=two.place, offset=two.offset)
                here = replace(two, place=one.place, offset=one.offset)
                return SceneChange("swap", (one, two), (there, here))
    return None


SINGLE: tuple[ChangeType, ...] = ("add", "remove", "move", "recolour", "resize", "replace")
"""The types that multiple changes consist of."""
DRAW: dict[ChangeType, Callable[[np.random.Generator, SceneSituation], SceneChange | None]] = {
    "add": _add,
    "remove": _remove,
    "move": _move,
    "recolour": _recolour,
    "resize": _resize,
    "replace": _replace,
    "swap": _swap,
}

"""Renders a pair of scenes with its change, or a single scene. The result depends only on (config, seed, index)."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.scenes.backgrounds import draw_background, through
from data_prep.scenes.changes import SceneChange, draw_changes
from data_prep.scenes.config import ChangeType, ScenesConfig
from data_prep.scenes.distractors import STILL, Camera, Distractors, disturbed, draw_distractors
from data_prep.scenes.solids import sprite
from data_prep.scenes.things import PLACES, SIZES, Thing, Things, draw_scene
from data_prep.scenes.words import pair_captions, single_captions
from data_prep.stamp import Box, Floats, lay
from onediff.errors import UserError

Pixels = NDArray[np.uint8]
K = TypeVar("K", bound=str)
TRIES = 10_000
"""Scenes drawn for a change. Where most objects are alike, one in a few hundred allows a swap."""


class RenderedPair(NamedTuple):
    """Two images and the change between them; `captions` holds several wordings of the same facts."""

    before: Pixels  # [height, width, 3]
    after: Pixels  # [height, width, 3]
    captions: list[str]
    change_type: str
    meta: dict[str, Any]


class Single(NamedTuple):
    """One image, with sentences that name all its objects."""

    image: Pixels  # [height, width, 3]
    captions: list[str]
    meta: dict[str, Any]


def render_pair(config: ScenesConfig, seed: int, index: int) -> RenderedPair:
    """Pair number `index` of the series `seed`.

    `meta` has `change_type`, the numbers of the objects in each of `changes`, the objects `before` and `after` with
    their attributes and boxes (left, top, right, bottom in pixels, shadow included; right and bottom exclusive), the
    type of `background` and the `distractors` applied.
    """
    rng = np.random.default_rng([seed, index, 2])
    kind = drawn(rng, config.changes)
    before, changes, after = _draw_pair(rng, kind, config)
    distractors = draw_distractors(rng, config.distractors)
    ground = drawn(rng, config.backgrounds)
    background = draw_background(rng, ground, config.width, config.height)
    old, old_boxes = _photographed(rng, background, before, config, distractors._replace(camera=STILL, light=None))
    new, new_boxes = _photographed(rng, background, after, config, distractors)
    captions = pair_captions(rng, changes, before, after, config.names, config.wordings)
    meta = {
        "change_type": kind,
        "changes": [
            {"type": change.type, "before": _numbers(change.old), "after": _numbers(change.new)} for change in changes
        ],
        "before": _described(before, old_boxes),
        "after": _described(after, new_boxes),
        "background": ground,
        "distractors": distractors.described(),
    }
    return RenderedPair(old, new, captions, kind, meta)


def render_single(config: ScenesConfig, seed: int, index: int) -> Single:
    """Single image number `index` of the series `seed`, of the same kind of scene, including distractors."""
    rng = np.random.default_rng([seed, index, 1])
    things = draw_scene(rng, int(rng.integers(config.min_objects, config.max_objects + 1)), config.likeness)
    distractors = draw_distractors(rng, config.distractors)
    ground = drawn(rng, config.backgrounds)
    background = draw_background(rng, ground, config.width, config.height)
    image, boxes = _photographed(rng, background, things, config, distractors)
    meta = {"objects": _described(things, boxes), "background": ground, "distractors": distractors.described()}
    return Single(image, single_captions(rng, things, config.wordings), meta)


def drawn(rng: np.random.Generator, weights: dict[K, float]) -> K:
    """A random key of `weights`, with a probability proportional to its weight."""
    names = list(weights)
    shares = np.array([weights[name] for name in names])
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _draw_pair(
    rng: np.random.Generator, kind: ChangeType, config: ScenesConfig
) -> tuple[Things, list[SceneChange], Things]:
    """A scene in which a change of type `kind` is possible, the changes, and the scene after them.

    Raises UserError if objects are so alike that no such scene is found.
    """
    for _ in range(TRIES):
        before = draw_scene(rng, int(rng.integers(config.min_objects, config.max_objects + 1)), config.likeness)
        outcome = draw_changes(rng, kind, before, config.likeness)
        if outcome is not None:
            return before, *outcome
    raise UserError(
        f"changes.{kind}: {TRIES:,} scenes with alike {config.alike:g} and twins {config.twins:g} allow no such change; "
        f"lower alike or twins, or set changes.{kind} to 0"
    )


def _photographed(
    rng: np.random.Generator, background: Image.Image, things: Things, config: ScenesConfig, distractors: Distractors
) -> tuple[Pixels, dict[int, Box]]:
    """The scene as seen by a camera, and the box of each object by its number."""
    camera = distractors.camera
    pixels = through(camera, background, config.width, config.height)
    # Back to front: objects lower in the image cover higher ones.
    boxes = {thing.number: _lay(pixels, thing, camera) for thing in sorted(things, key=lambda thing: thing.centre[1])}
    return disturbed(rng, pixels, distractors), boxes


def _lay(pixels: Floats, thing: Thing, camera: Camera) -> Box:
    """Draws `thing` into `pixels`; returns its box."""
    height, width = pixels.shape[:2]
    diameter = max(4, round(SIZES[thing.size] * camera.zoom * min(width, height)))
    x, y = camera.seen(*thing.centre)
    return lay(pixels, sprite(thing.shape, thing.colour, thing.material, thing.turn, diameter), x * width, y * height)


def _described(things: Things, boxes: dict[int, Box]) -> list[dict[str, Any]]:
    """The objects as plain values for JSON, in the order of their numbers."""
    return [
        {
            "number": thing.number,
            "size": thing.size,
            "colour": thing.colour,
            "material": thing.material,
            "shape": thing.shape,
            "place": PLACES[thing.place],
            "box": list(boxes[thing.number]),
        }
        for thing in sorted(things, key=lambda thing: thing.number)
    ]


def _numbers(things: Things) -> list[int]:
    return [thing.number for thing in things]

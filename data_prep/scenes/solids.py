"""Renders shaded images of single solids by casting parallel rays."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_prep.scenes.things import COLOURS, TURNS
from data_prep.stamp import Floats, Stamp, stamped

ELEVATION = np.radians(32.0)
FORWARD = np.array([0.0, np.cos(ELEVATION), -np.sin(ELEVATION)])
UPWARD = np.array([0.0, np.sin(ELEVATION), np.cos(ELEVATION)])
LIGHT = np.array([-0.50, -0.45, 0.74])
"""Direction of the light source, as a unit vector: rightwards, away from the camera, upwards."""
REACH = 1.6
"""Half the side of a sprite in radii of the object, with room for the shadow."""
OVERSAMPLING = 3


@lru_cache(maxsize=512)
def sprite(shape: str, colour: str, material: str, turn: int, diameter: int) -> Stamp:
    """The image of one object of `diameter` pixels with its shadow, centred in a square."""
    body, coverage = solid(shape, colour, material, turn, diameter)
    return stamped(body * coverage, coverage, _shadow(diameter))


def solid(shape: str, colour: str, material: str, turn: int, diameter: int) -> tuple[Floats, Floats]:
    """One object of `diameter` pixels, centred in a square: its colours [side, side, 3] and coverage [side, side, 1]."""
    coverage, shade, gloss = _shaded(shape, turn, diameter)
    base = np.array(COLOURS[colour], np.float32)
    if material == "shiny":
        body = base * (0.30 + 0.85 * shade) + 255 * gloss
    else:
        body = base * (0.55 + 0.40 * shade)
    return np.minimum(body, 255), coverage


@lru_cache(maxsize=512)
def _shaded(shape: str, turn: int, diameter: int) -> tuple[Floats, Floats, Floats]:
    """Coverage, diffuse light and highlight of a solid, each [side, side, 1], averaged over the rays of a pixel."""
    x, y = _plane(diameter, OVERSAMPLING)
    origin = x[..., None] * np.array([1.0, 0.0, 0.0]) + y[..., None] * UPWARD - 4 * FORWARD
    angle = np.radians(90.0 * (turn + 0.5) / TURNS)
    spin = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    # Rotate the rays instead of the solid, so that each solid can be described in its own axes.
    depth, normal = SOLIDS[shape](origin @ spin, FORWARD @ spin)
    hit = np.isfinite(depth)
    point = origin + np.where(hit, depth, 0)[..., None] * FORWARD
    normal = normal @ spin.T
    shade = np.clip(normal @ LIGHT, 0, 1)
    # In parallel light, a flat face would be all highlight or none: bend the normals towards those of a sphere.
    worn = 0.35 * normal + point
    worn /= np.linalg.norm(worn, axis=-1, keepdims=True) + 1e-9
    halfway = LIGHT - FORWARD
    gloss = np.clip(worn @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 28
    return _mean(hit.astype(float)), _mean(shade * hit), _mean(gloss * hit)


@lru_cache(maxsize=512)
def _shadow(diameter: int) -> Floats:
    """How much light the soft shadow beside an object takes away, [side, side, 1]."""
    x, y = _plane(diameter, 1)
    distance = np.hypot((x - 0.28) / 1.15, (y + 0.62) / 0.62)
    return (0.5 * np.clip((1.15 - distance) / 0.5, 0, 1))[..., None].astype(np.float32)


def _plane(diameter: int, oversampling: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions of a sprite's rays in radii, rightwards and upwards from the centre of the object."""
    side = 2 * int(np.ceil(REACH * diameter / 2)) * oversampling
    steps = (np.arange(side) + 0.5 - side / 2) / (diameter / 2 * oversampling)
    return np.broadcast_to(steps, (side, side)), np.broadcast_to(-steps[:, None], (side, side))


def _mean(rays: NDArray[np.float64]) -> Floats:
    """[n * OVERSAMPLING, n * OVERSAMPLING] to the pixels' means [n, n, 1]."""
    n = len(rays) // OVERSAMPLING
    return rays.reshape(n, OVERSAMPLING, n, OVERSAMPLING).mean((1, 3))[..., None].astype(np.float32)


# Each solid takes rays `origin + depth * direction` ([..., 3] and [3]) to the depth of the first hit ([...], infinite
# if there is none) and the unit normal there ([..., 3]).
Rays = NDArray[np.float64]


def _cube(origin: Rays, direction: Rays) -> tuple[Rays, Rays]:
    half = 0.66
    low, high = np.sort(np.stack([(-half - origin) / direction, (half - origin) / direction]), axis=0)
    axis = low.argmax(-1)
    enters, leaves = low.max(-1), high.min(-1)
    normal = -np.eye(3)[axis] * np.sign(direction)
    return np.where(enters < leaves, enters, np.inf), normal


def _sphere(origin: Rays, direction: Rays) -> tuple[Rays, Rays]:
    radius = 0.96
    depth = _nearer_root(1.0, origin @ direction, (origin**2).sum(-1) - radius**2)
    return depth, _unit(origin + np.where(np.isfinite(depth), depth, 0)[..., None] * direction)


def _cylinder(origin: Rays, direction: Rays) -> tuple[Rays, Rays]:
    radius, half = 0.68, 0.74
    flat, along = origin[..., :2], direction[:2]
    side = _nearer_root(along @ along, flat @ along, (flat**2).sum(-1) - radius**2)
    side = _between(side, origin, direction, -half, half)
    lid = (half - origin[..., 2]) / direction[2]
    lid = np.where(((origin + lid[..., None] * direction)[..., :2] ** 2).sum(-1) < radius**2, lid, np.inf)
    depth = np.minimum(side, lid)
    outward = (origin + np.where(np.isfinite(depth), depth, 0)[..., None] * direction) * np.array([1, 1, 0])
    return depth, np.where((lid <= side)[..., None], np.array([0.0, 0.0, 1.0]), _unit(outward))


def _cone(origin: Rays, direction: Rays) -> tuple[Rays, Rays]:
    radius, base, top = 0.86, -0.74, 1.1
    slope = radius / (top - base)
    squash = np.array([1.0, 1.0, -(slope**2)])
    centred = origin - np.array([0.0, 0.0, top])
    a, b, c = (direction**2) @ squash, (centred * direction) @ squash, (centred**2) @ squash
    depth = _between(_nearer_root(a, b, c), origin, direction, base, top)
    point = centred + np.where(np.isfinite(depth), depth, 0)[..., None] * direction
    return depth, _unit(point * squash)


SOLIDS = {"cube": _cube, "sphere": _sphere, "cylinder": _cylinder, "cone": _cone}


def _nearer_root(a: float | Rays, b: Rays, c: Rays) -> Rays:
    """The smaller solution of `a t² + 2 b t + c = 0` (infinite if there is none), for positive `a`."""
    inside = b**2 - a * c
    return np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)


def _between(depth: Rays, origin: Rays, direction: Rays, low: float, high: float) -> Rays:
    """`depth`, but infinite if the hit is above `high` or below `low`."""
    height = origin[..., 2] + np.where(np.isfinite(depth), depth, 0) * direction[2]
    return np.where((height >= low) & (height <= high), depth, np.inf)


def _unit(vectors: Rays) -> Rays:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)

"""Changes to an image composed of a photograph and cut-outs. Every change is clearly visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from data_prep.compose.blend import Tone, shows_mirroring, shows_paint
from data_prep.compose.config import ChangeType
from data_prep.compose.library import Library
from data_prep.compose.stage import Piece, Stage, draw_offset, draw_piece, draw_scale
from data_prep.scenes.distractors import Camera
from data_prep.scenes.things import COLOURS, PLACES, pick

PARTS = {"top left": (-1, -1), "top right": (1, -1), "bottom left": (-1, 1), "bottom right": (1, 1), "middle": (0, 0)}
"""The parts that an image can be cropped to, as directions rightwards and downwards."""
LEAST_DETAIL = 4.0
"""Fine detail, in grey levels, that a photograph needs for a blur to be visible."""


@dataclass(frozen=True)
class ComposedChange:
    """One change: the affected pieces before and after; none if it affects the whole image.

    `words` fill in the wordings that the pieces alone cannot.
    """

    type: ChangeType
    old: tuple[Piece, ...] = ()
    new: tuple[Piece, ...] = ()
    words: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ComposedSituation:
    """The context of a change: the stage before it, the photograph's tone, and the library of possible additions."""

    before: Stage
    tone: Tone
    library: Library


Outcome = tuple[ComposedChange, Stage]


def draw_change(rng: np.random.Generator, kind: ChangeType, situation: ComposedSituation) -> Outcome | None:
    """A change of type `kind` and the stage after it, or None if the stage allows none."""
    return DRAW[kind](rng, situation)


def _candidates(rng: np.random.Generator, situation: ComposedSituation) -> list[Piece]:
    """The pieces in random order."""
    pieces = situation.before.pieces
    return [pieces[int(i)] for i in rng.permutation(len(pieces))]


def _free_place(rng: np.random.Generator, situation: ComposedSituation) -> int:
    free = sorted(set(range(len(PLACES))) - {piece.place for piece in situation.before.pieces})
    return free[int(rng.integers(len(free)))]


def _with(situation: ComposedSituation, kind: ChangeType, old: Piece, new: Piece, **words: str) -> Outcome:
    """The outcome in which `new` replaces `old`."""
    pieces = tuple(new if piece is old else piece for piece in situation.before.pieces)
    return ComposedChange(kind, (old,), (new,), words), replace(situation.before, pieces=pieces)


def _none(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    return ComposedChange("none"), situation.before


def _add(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    pieces = situation.before.pieces
    piece = draw_piece(rng, situation.library, _free_place(rng, situation), pieces)
    return ComposedChange("add", new=(piece,)), replace(situation.before, pieces=(*pieces, piece))


def _remove(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    gone = _candidates(rng, situation)[0]
    pieces = tuple(piece for piece in situation.before.pieces if piece is not gone)
    return ComposedChange("remove", (gone,)), replace(situation.before, pieces=pieces)


def _move(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    old = _candidates(rng, situation)[0]
    return _with(situation, "move", old, replace(old, place=_free_place(rng, situation), offset=draw_offset(rng)))


def _replace(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    old = _candidates(rng, situation)[0]
    new = draw_piece(rng, situation.library, old.place, situation.before.pieces)
    return _with(situation, "replace", old, replace(new, offset=old.offset, scale=old.scale))


def _recolour(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    for old in _candidates(rng, situation):
        colour = pick(rng, tuple(colour for colour in COLOURS if colour != "white"))
        if colour not in old.cutout.name.split() and shows_paint(old.cutout, colour):
            return _with(situation, "recolour", old, replace(old, colour=colour), colour=colour)
    return None


def _resize(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    old = _candidates(rng, situation)[0]
    words = ("smaller", "shrunk") if old.is_large else ("larger", "grown")
    new = replace(old, scale=draw_scale(rng, not old.is_large))
    return _with(situation, "resize", old, new, larger=words[0], grown=words[1])


def _flip(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    for old in _candidates(rng, situation):
        if shows_mirroring(old.cutout):
            return _with(situation, "flip", old, replace(old, mirrored=True))
    return None


def _blur(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    if rng.random() < 0.5:
        old = _candidates(rng, situation)[0]
        return _with(situation, "blur", old, replace(old, blurred=True))
    if situation.tone.detail < LEAST_DETAIL:
        return None
    return ComposedChange("blur", words={"part": "background"}), replace(situation.before, is_blurred=True)


def _brighten(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    light = float(situation.tone.mean.mean())
    is_up = light < 80 or (light < 150 and rng.random() < 0.5)
    gain = rng.uniform(1.45, 1.75) if is_up else rng.uniform(0.45, 0.62)
    words = {"brighter": "brighter", "brightened": "brightened"}
    if not is_up:
        words = {"brighter": "darker", "brightened": "darkened"}
    return ComposedChange("brighten", words=words), replace(situation.before, gain=float(gain))


def _crop(rng: np.random.Generator, situation: ComposedSituation) -> Outcome | None:
    part = pick(rng, tuple(PARTS))
    zoom = float(rng.uniform(1.5, 1.8))
    # The centre of the part is half its width away from its corner.
    right, down = (direction * 0.5 * (1 - 1 / zoom) for direction in PARTS[part])
    return ComposedChange("crop", words={"part": part}), replace(situation.before, camera=Camera(right, down, zoom))


DRAW: dict[ChangeType, Callable[[np.random.Generator, ComposedSituation], Outcome | None]] = {
    "none": _none,
    "add": _add,
    "remove": _remove,
    "move": _move,
    "replace": _replace,
    "recolour": _recolour,
    "resize": _resize,
    "flip": _flip,
    "blur": _blur,
    "brighten": _brighten,
    "crop": _crop,
}

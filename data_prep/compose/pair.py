"""Composes a pair, or a single image. The result depends only on (config, library, seed, index)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from data_prep.compose.blend import Tone, piece_stamp, tone_of
from data_prep.compose.changes import ComposedChange, ComposedSituation, draw_change
from data_prep.compose.config import ChangeType, ComposeConfig
from data_prep.compose.library import Library
from data_prep.compose.masks import encode_mask
from data_prep.compose.stage import Stage, draw_stage
from data_prep.compose.words import change_captions, single_captions
from data_prep.scenes.backgrounds import MARGIN, draw_part, through
from data_prep.scenes.distractors import STILL, Camera, disturbed, draw_distractors
from data_prep.scenes.render import RenderedPair, Single, drawn
from data_prep.scenes.things import PLACES
from data_prep.stamp import Box, Floats, lay
from onediff.errors import UserError

TRIES = 200
CLEAR = 25.0
"""Minimum difference of a piece from the photograph behind it: mean over its mask, in grey levels."""


class PairPlan(NamedTuple):
    """The content of a pair."""

    before: Stage
    change: ComposedChange
    after: Stage
    canvas: Image.Image
    tone: Tone


class Shot(NamedTuple):
    """An image of a stage, the piece visible at each pixel, and the box of each piece by its number, shadow included.

    `least_contrast` is the lowest contrast of any piece, in grey levels.
    """

    pixels: Floats  # [height, width, 3]
    owner: NDArray[np.int16]  # [height, width], the number of the visible piece, -1 for the photograph
    boxes: dict[int, Box]
    least_contrast: float


def compose_pair(config: ComposeConfig, library: Library, seed: int, index: int) -> RenderedPair:
    """Pair number `index` of the series `seed`.

    `meta` has `change_type`, the numbers of the pieces in each of `changes` (none if a change affects the whole image),
    the pieces visible `before` and `after` with name, place on the photograph, box (left, top, right, bottom in pixels,
    shadow included) and mask (COCO's uncompressed run lengths), the file of the `background`, and the `distractors`.
    """
    rng = np.random.default_rng([seed, index, 3])
    kind = drawn(rng, config.changes)
    distractors = draw_distractors(rng, config.distractors)
    if kind == "crop":
        # A crop already is a viewpoint: the image's edges must be where the caption says.
        distractors = distractors._replace(camera=STILL)
    for _ in range(TRIES):
        plan = _draw_plan(rng, kind, config, library)
        if plan is None:
            continue
        old = _shoot(plan.before, plan, config, STILL)
        new = _shoot(plan.after, plan, config, distractors.camera)
        if min(old.least_contrast, new.least_contrast) > CLEAR:
            break
    else:
        raise UserError(f"changes.{kind}: the photographs and cut-outs allow no such change; set its weight to 0")
    change = plan.change
    meta = {
        "change_type": kind,
        "changes": [_numbered(change)] if kind != "none" else [],
        "before": _described(plan.before, old),
        "after": _described(plan.after, new),
        "background": plan.before.background.path.rpartition("/")[2],
        "distractors": distractors.described(),
    }
    return RenderedPair(
        disturbed(rng, old.pixels, distractors._replace(light=None)),
        disturbed(rng, new.pixels, distractors),
        change_captions(rng, change, config.wordings),
        kind,
        meta,
    )


def compose_single(config: ComposeConfig, library: Library, seed: int, index: int) -> Single:
    """Single image number `index` of the series `seed`, composed in the same way, including distractors.

    `meta` has `objects`, described like the pieces of `compose_pair`, the `background` and the `distractors`.
    """
    rng = np.random.default_rng([seed, index, 4])
    distractors = draw_distractors(rng, config.distractors)
    for _ in range(TRIES):
        plan = _draw_plan(rng, "none", config, library)
        assert plan is not None, "every stage can stay as it is"
        shot = _shoot(plan.before, plan, config, distractors.camera)
        if shot.least_contrast > CLEAR:
            break
    else:
        raise UserError("--cutouts: none stands out from its photograph; give others")
    meta = {
        "objects": _described(plan.before, shot),
        "background": plan.before.background.path.rpartition("/")[2],
        "distractors": distractors.described(),
    }
    pixels = disturbed(rng, shot.pixels, distractors)
    return Single(pixels, single_captions(rng, plan.before.pieces, config.wordings), meta)


def _draw_plan(rng: np.random.Generator, kind: ChangeType, config: ComposeConfig, library: Library) -> PairPlan | None:
    """A random stage and a change of type `kind` to it, or None if the stage allows none."""
    # A crop enlarges the remaining part, so it needs a photograph with more pixels.
    finer = 2 if kind == "crop" else 1
    across, down = (round(side * finer * (1 + 2 * MARGIN)) for side in (config.width, config.height))
    before = draw_stage(rng, library, int(rng.integers(config.min_objects, config.max_objects + 1)))
    canvas = draw_part(rng, before.background.open(), across, down)
    tone = tone_of(canvas)
    outcome = draw_change(rng, kind, ComposedSituation(before, tone, library))
    return None if outcome is None else PairPlan(before, *outcome, canvas, tone)


def _shoot(stage: Stage, plan: PairPlan, config: ComposeConfig, viewpoint: Camera) -> Shot:
    """The stage as seen by its own camera or, without one, by `viewpoint`."""
    camera = viewpoint if stage.camera == STILL else stage.camera
    canvas = plan.canvas
    if stage.is_blurred:
        canvas = canvas.filter(ImageFilter.GaussianBlur(0.016 * min(canvas.size)))
    pixels = through(camera, canvas, config.width, config.height)
    ground = pixels.copy()
    owner = np.full((config.height, config.width), -1, np.int16)
    boxes = {}
    # Pieces lower in the image cover higher ones.
    for piece in sorted(stage.pieces, key=lambda piece: piece.centre[1]):
        side = max(8, round(piece.scale * camera.zoom * min(config.width, config.height)))
        x, y = camera.seen(*piece.centre)
        stamp = piece_stamp(piece, side, plan.tone, config)
        boxes[piece.number] = lay(pixels, stamp, x * config.width, y * config.height, owner, piece.number)
    contrast = np.abs(pixels - ground).mean(-1)
    seen = [owner == piece.number for piece in stage.pieces]
    least = min((float(contrast[mask].mean()) for mask in seen if mask.any()), default=255.0)
    return Shot(np.clip(pixels * stage.gain, 0, 255), owner, boxes, least)


def _described(stage: Stage, shot: Shot) -> list[dict[str, Any]]:
    """The visible pieces, as plain values for JSON."""
    return [
        {
            "number": piece.number,
            "name": piece.cutout.name,
            "place": PLACES[piece.place],
            "box": list(shot.boxes[piece.number]),
            "mask": encode_mask(shot.owner == piece.number),
        }
        for piece in stage.pieces
        if (shot.owner == piece.number).any()
    ]


def _numbered(change: ComposedChange) -> dict[str, Any]:
    """The change, with its pieces replaced by their numbers."""
    return {
        "type": change.type,
        "before": [piece.number for piece in change.old],
        "after": [piece.number for piece in change.new],
        **change.words,
    }

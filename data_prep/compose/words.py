"""Captions of composed images and their changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_prep.compose.changes import ComposedChange
from data_prep.compose.stage import Piece
from data_prep.scenes import words as scenes
from data_prep.scenes.things import PLACES

# In addition to the wordings for rendered scenes, which also apply to cut-outs.
WORDINGS: dict[str, tuple[str, ...]] = {
    "flip": (
        "the {old} {at} has been mirrored",
        "the {old} {at} has been flipped from left to right",
        "left and right of the {old} {at} have been exchanged",
        "the {old} {at} is now its own mirror image",
        "the {old} {at} was flipped horizontally",
    ),
    "blur": (
        "the {old} {at} has become blurry",
        "the {old} {at} is now out of focus",
        "the {old} {at} has been blurred",
        "the {old} {at} is not sharp any more",
        "the {old} {at} has lost its sharpness",
    ),
    "blurred background": (
        "the background has become blurry",
        "the background is now out of focus",
        "the background has been blurred",
        "everything behind the objects is blurred now",
        "the background has lost its sharpness",
    ),
    "brighten": (
        "the whole picture has become {brighter}",
        "the picture is now {brighter}",
        "the picture has been {brightened}",
        "the second picture is {brighter} than the first",
        "everything is {brighter} than before",
    ),
    "crop": (
        "the picture has been cropped to its {part} part",
        "only the {part} part of the picture is left",
        "the picture now shows only its former {part} part",
        "everything but the {part} part has been cut off",
        "the second picture shows the {part} part of the first",
    ),
}


def change_captions(rng: np.random.Generator, change: ComposedChange, wordings: int) -> list[str]:
    """`wordings` sentences that describe `change` alone, in random order."""
    facts = dict(change.words)
    for piece in change.old:
        facts |= {"old": piece.cutout.name, "at": scenes.at(piece.place), "from": f"the {PLACES[piece.place]}"}
    for piece in change.new:
        facts |= {"a_new": f"{piece.cutout.article} {piece.cutout.name}", "new_at": scenes.at(piece.place)}
        facts |= {"to": f"the {PLACES[piece.place]}"}
        facts.setdefault("at", scenes.at(piece.place))
    if change.type == "blur" and not change.old:
        texts = WORDINGS["blurred background"]
    elif change.type in ("flip", "blur", "brighten", "crop"):
        texts = WORDINGS[change.type]
    else:
        texts = scenes.WORDINGS[change.type]
    return [texts[int(i)].format(**facts) for i in rng.permutation(min(wordings, len(texts)))]


def single_captions(rng: np.random.Generator, pieces: Sequence[Piece], wordings: int) -> list[str]:
    """Up to `wordings` sentences that name each of `pieces` after its place, in random order."""
    ordered = sorted(pieces, key=lambda piece: piece.place)
    clauses = [f"{scenes.at(piece.place)} {piece.cutout.article} {piece.cutout.name}" for piece in ordered]
    return scenes.listed(rng, clauses, wordings)

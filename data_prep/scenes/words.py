"""Captions of scenes and changes, from a small fixed vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np

from data_prep.scenes.changes import SceneChange
from data_prep.scenes.things import PLACES, Thing, Things

Names = Literal["needed", "full"]

# {old} and {new} name an object without an article, {a_new} with one; {from}, {to} and {at} are places.
WORDINGS: dict[str, tuple[str, ...]] = {
    "add": (
        "{a_new} has appeared {at}",
        "there is now {a_new} {at}",
        "{a_new} has been added {at}",
        "{a_new} is new {at}",
        "somebody has put {a_new} {at}",
    ),
    "remove": (
        "the {old} {at} has been removed",
        "the {old} {at} is gone",
        "the {old} {at} has disappeared",
        "the {old} {at} is missing",
        "the {old} is no longer {at}",
    ),
    "move": (
        "the {old} has moved from {from} to {to}",
        "the {old} {at} is now {new_at}",
        "the {old} was moved from {from} to {to}",
        "the {old} is no longer {at} but {new_at}",
        "the {old} went from {from} to {to}",
    ),
    "recolour": (
        "the {old} {at} has turned {colour}",
        "the {old} {at} is now {colour}",
        "the {old} {at} changed its colour to {colour}",
        "the {old} {at} has become {colour}",
        "the {old} {at} was painted {colour}",
    ),
    "resize": (
        "the {old} {at} has become {larger}",
        "the {old} {at} is now {larger}",
        "the {old} {at} has {grown}",
        "the {old} {at} is {larger} than before",
        "the {old} {at} got {larger}",
    ),
    "replace": (
        "the {old} {at} has been replaced by {a_new}",
        "there is {a_new} instead of the {old} {at}",
        "the {old} {at} has become {a_new}",
        "{a_new} has taken the place of the {old} {at}",
        "{a_new} stands where the {old} was {at}",
    ),
    "swap": (
        "the {old} and the {other} have swapped places",
        "the {old} and the {other} have changed places",
        "the {old} is now where the {other} was and vice versa",
        "the {old} has changed places with the {other}",
        "the {old} and the {other} were exchanged",
    ),
    "none": (
        "nothing has changed",
        "there is no difference",
        "the two images show the same scene",
        "there is no change",
        "everything is as it was before",
    ),
}
# Sentences with several changes leave out places that the objects' names make redundant.
CLAUSES: dict[str, tuple[str, str]] = {
    "add": ("{a_new} has appeared {at}", "there is now {a_new} {at}"),
    "remove": ("the {old} has been removed", "the {old} is gone"),
    "move": ("the {old} has moved to {to}", "the {old} is now {new_at}"),
    "recolour": ("the {old} has turned {colour}", "the {old} is now {colour}"),
    "resize": ("the {old} has become {larger}", "the {old} is now {larger}"),
    "replace": ("the {old} has been replaced by {a_new}", "there is {a_new} instead of the {old}"),
}
LISTS = ("{all}", "there is {all}", "the image shows {all}", "one can see {all}", "this is an image of {all}")


def pair_captions(
    rng: np.random.Generator, changes: Sequence[SceneChange], before: Things, after: Things, names: Names, wordings: int
) -> list[str]:
    """Up to `wordings` sentences that describe exactly `changes`, in random order.

    Several changes, and objects that swap places, are named in reading order of their places, so that a model need not guess
    which comes first.
    """
    if not changes:
        return _shuffled(rng, list(WORDINGS["none"][:wordings]))
    changes = sorted(changes, key=_first_place)
    facts = [_facts(change, before, after, names) for change in changes]
    if len(changes) == 1:
        return _shuffled(rng, [text.format(**facts[0]) for text in WORDINGS[changes[0].type][:wordings]])
    of_wording = zip(*(_clauses(change, fact) for change, fact in zip(changes, facts, strict=True)), strict=True)
    return _shuffled(rng, [_joined(clauses) for clauses in of_wording][:wordings])


def single_captions(rng: np.random.Generator, things: Things, wordings: int) -> list[str]:
    """Up to `wordings` sentences that name each of `things` in full after its place, in random order.

    The place comes first, so that a model that learns to see from these sentences knows where to look for the following
    words; it learns several times as fast as from "a small red cube at the top left".
    """
    ordered = sorted(things, key=lambda thing: thing.place)
    return listed(rng, [f"{at(thing.place)} {with_article(' '.join(thing.look))}" for thing in ordered], wordings)


def listed(rng: np.random.Generator, clauses: Sequence[str], wordings: int) -> list[str]:
    """Up to `wordings` sentences that state that an image shows all of `clauses`, in random order."""
    everything = _joined(clauses)
    return _shuffled(rng, [text.format(all=everything) for text in LISTS[:wordings]])


def name(thing: Thing, among: Things, names: Names) -> str:
    """The name of `thing`: colour and shape, plus size or material (or both) if others share those or `names` is full."""
    others = [other for other in among if other.number != thing.number]
    for with_material, with_size in product((False, True), repeat=2):
        kept = (with_size, True, with_material, True)
        same = [all(a == b for a, b, k in zip(thing.look, other.look, kept, strict=True) if k) for other in others]
        if not any(same) and names == "needed":
            return " ".join(word for word, k in zip(thing.look, kept, strict=True) if k)
    return " ".join(thing.look)


def at(place: int) -> str:
    """The place as an adverbial: at the top left, in the middle, on the right."""
    where = PLACES[place]
    return f"{'in' if where == 'middle' else 'on' if where in ('left', 'right') else 'at'} the {where}"


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _facts(change: SceneChange, before: Things, after: Things, names: Names) -> dict[str, str]:
    """The values for the placeholders in the wordings."""
    old, new = change.old[:1], change.new[:1]
    facts = {"at": at((old or new)[0].place)}
    for thing in old:
        facts |= {"old": name(thing, before, names), "from": f"the {PLACES[thing.place]}"}
    for thing in new:
        grows = thing.size == "large"
        facts |= {
            "a_new": with_article(name(thing, after, names)),
            "to": f"the {PLACES[thing.place]}",
            "new_at": at(thing.place),
            "colour": thing.colour,
            "larger": "larger" if grows else "smaller",
            "grown": "grown" if grows else "shrunk",
        }
    if change.type == "swap":
        facts["old"], facts["other"] = (
            name(thing, before, names) for thing in sorted(change.old, key=lambda t: t.place)
        )
    return facts


def _clauses(change: SceneChange, facts: dict[str, str]) -> list[str]:
    return [text.format(**facts) for text in CLAUSES[change.type]]


def _first_place(change: SceneChange) -> int:
    return min(thing.place for thing in change.old or change.new)


def _joined(clauses: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(filter(None, [", ".join(clauses[:-1]), clauses[-1]]))


def _shuffled(rng: np.random.Generator, sentences: list[str]) -> list[str]:
    return [sentences[int(i)] for i in rng.permutation(len(sentences))]

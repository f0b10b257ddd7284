"""Compares a caption with the true changes: which items are right, and each attribute separately.

An item is **right** if its type is right; if everything it says about its objects is true, includes colour and shape (or
the name), and distinguishes each object from all others in its image by its look; if it says where an object was added or
moved to; and if it says correctly what something became. Other places may be left out, but must be true if given.

An **attribute** is counted for every object of a true item that needs it, and wherever the caption gives it. It is wrong
if it is left out, or if the caption misses the item. To decide which stated item is about which true one, the two lists are
aligned *without* the attribute being counted, so that no attribute benefits from its own agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from onediff.evaluation.items.grammar import Description, Item, Reading
from onediff.evaluation.items.known import TrueChanges

COUNTED = ("shape", "colour", "size", "material", "name", "place", "light", "part")
"""The attributes that are counted separately."""
LOOK = ("size", "colour", "material", "shape", "name")


class Verdict(NamedTuple):
    """One caption compared with its pair's true changes."""

    right: bool
    """Every true item is stated correctly, and nothing else is stated."""
    found: int
    """True items that are stated correctly."""
    said: int
    """Items stated; an unread remainder counts as one."""
    hallucinated: int
    """Items stated about something that did not change; an unread remainder counts as one."""
    attributes: dict[str, tuple[int, int]]
    """Attribute → how often it is counted, and how often it is right."""


def judged(reading: Reading, known: TrueChanges) -> Verdict:
    """The verdict on what a caption says."""
    said, true = reading.items, known.items
    pairs = aligned(said, true, lambda one, other: float(is_right(one, other, known)))
    found = sum(is_right(said[i], true[j], known) for i, j in pairs)
    unread = bool(reading.unread)
    return Verdict(
        right=found == len(said) == len(true) and not unread,
        found=found,
        said=len(said) + unread,
        hallucinated=unread + sum(_invented(one, known) for one in said),
        attributes={name: _counted(name, said, known) for name in COUNTED},
    )


def is_right(said: Item, true: Item, known: TrueChanges) -> bool:
    """Whether a stated item is right about a true item, as defined above."""
    if said.type != true.type or len(said.objects) != len(true.objects):
        return False
    scene = known.after if true.type == "add" else known.before
    orders = (true.objects, true.objects[::-1]) if len(true.objects) == 2 else (true.objects,)
    if not any(all(_tells(s, t, scene) for s, t in zip(said.objects, order, strict=True)) for order in orders):
        return False
    if true.type == "add":
        return "place" in said.objects[0]
    if true.type == "replace":
        return _tells(said.becomes, true.becomes, known.after)
    return said.becomes == true.becomes


def fits(said: Description, true: Description) -> bool:
    """Whether everything said is true. A name may lack its first words: a red apple may be called an apple."""
    for key, value in said.items():
        if key == "name":
            words, name = value.split(), true.get("name", "").split()
            if not name or words[-1] != name[-1] or not set(words) <= set(name):
                return False
        elif true.get(key) != value:
            return False
    return True


def needed(true: Description, scene: Iterable[Description]) -> tuple[str, ...]:
    """The attributes of the shortest look that distinguishes `true` from every other object in `scene`."""
    if "shape" not in true:
        return ("name",)
    others = [other for other in scene if _look(other) != _look(true)]
    for more in ((), ("size",), ("material",)):
        kept = ("colour", "shape", *more)
        if not any(all(other.get(key) == true.get(key) for key in kept) for other in others):
            return tuple(key for key in kept if key in true)
    return tuple(key for key in LOOK if key in true)


def aligned(
    said: Sequence[Item], true: Sequence[Item], agreement: Callable[[Item, Item], float]
) -> list[tuple[int, int]]:
    """The pairing (index said, index true) with the highest total agreement; the first one in case of a tie.

    Costs len(said) × 2 ** len(true) steps; pairs have a handful of changes.
    """
    best: dict[int, tuple[float, tuple[tuple[int, int], ...]]] = {0: (0.0, ())}
    for i, one in enumerate(said):
        gains = [agreement(one, other) for other in true]
        grown = dict(best)
        for used, (total, pairs) in best.items():
            for j, gain in enumerate(gains):
                if not used >> j & 1:
                    with_j = used | 1 << j
                    # A small bonus per pairing, so that as many items as possible are aligned.
                    value = total + gain + 1e-6
                    if with_j not in grown or value > grown[with_j][0]:
                        grown[with_j] = value, (*pairs, (i, j))
        best = grown
    return list(max(best.values(), key=lambda one: one[0])[1])


def _tells(said: Description, true: Description, scene: Iterable[Description]) -> bool:
    """Whether `said` is true of `true`, and its look fits no other object of the scene."""
    basic = ("name",) if "name" in true else ("colour", "shape") if "shape" in true else ()
    if not fits(said, true) or any(key not in said for key in basic):
        return False
    look = _look(said)
    return not any(fits(look, other) for other in scene if _look(other) != _look(true))


def _invented(said: Item, known: TrueChanges) -> bool:
    """Whether `said` is about something that did not change.

    Either it describes an object that exists and did not change, or it shares neither a place nor half of an object's
    look with any change.
    """
    changed = [one for item in known.items for one in item.objects]
    if not said.objects or not changed:
        return all(said.type != true.type for true in known.items)
    if any(fits(one, other) for one in said.objects for other in changed):
        return False
    stayed = [one for one in known.before if one not in changed and one in known.after]
    if any(fits(one, other) for one in said.objects for other in stayed):
        return True
    if any(_places(said) & _places(true) for true in known.items):
        return False
    looks = [_look(one) for one in said.objects]
    return not any(look and 2 * _shared(look, other) >= len(look) for look in looks for other in changed)


def _places(item: Item) -> set[str]:
    return {one["place"] for one in (*item.objects, item.becomes) if "place" in one}


def _counted(name: str, said: Sequence[Item], known: TrueChanges) -> tuple[int, int]:
    """How often attribute `name` is counted in one caption, and how often it is right."""
    pairs = {j: said[i] for i, j in aligned(said, known.items, lambda one, other: _agreement(one, other, name))}
    asked = right = 0
    for j, true in enumerate(known.items):
        for given, real, needs in _slots(pairs.get(j), true, known, name):
            if name in real and (name in needs or name in given):
                asked += 1
                right += fits({name: given[name]}, real) if name in given else False
    return asked, right


def _slots(
    said: Item | None, true: Item, known: TrueChanges, name: str
) -> Iterator[tuple[Description, Description, tuple[str, ...]]]:
    """For each object of a true item, and for what it became: what is said, what is true and what is needed."""
    mine = said.objects if said else ()
    if len(mine) == len(true.objects) == 2:
        # Two objects that swapped may be named in either order.
        mine = max(mine, mine[::-1], key=lambda order: _overlap(order, true.objects, name))
    scene = known.after if true.type == "add" else known.before
    for i, real in enumerate(true.objects):
        needs = needed(real, scene) + (("place",) if true.type == "add" else ())
        yield mine[i] if i < len(mine) else {}, real, needs
    if true.becomes:
        needs = needed(true.becomes, known.after) if true.type == "replace" else tuple(true.becomes)
        yield said.becomes if said else {}, true.becomes, needs


def _agreement(said: Item, true: Item, without: str) -> float:
    """How many properties two items share, apart from attribute `without`."""
    both = _overlap(said.objects, true.objects, without)
    if len(true.objects) == 2:
        both = max(both, _overlap(said.objects[::-1], true.objects, without))
    return (said.type == true.type) + both + _shared(said.becomes, true.becomes, without)


def _overlap(said: Sequence[Description], true: Sequence[Description], without: str) -> float:
    return sum(_shared(s, t, without) for s, t in zip(said, true, strict=False))


def _shared(said: Description, true: Description, without: str = "") -> int:
    return sum(fits({key: value}, true) for key, value in said.items() if key != without)


def _look(one: Mapping[str, str]) -> Description:
    return {key: value for key, value in one.items() if key in LOOK}

"""The true changes of a pair, from the `meta` that `onediff data render` and `onediff data compose` store.

    {"changes": [{"type": "replace", "before": [2], "after": [3]}],
     "before": [{"number": 2, "size": "large", "colour": "yellow", "material": "matte", "shape": "cone", "place": "top"}],
     "after": [{"number": 3, "size": "small", "colour": "orange", "material": "matte", "shape": "cube", "place": "top"}]}

`before` and `after` list all objects of the two images; those of composed pairs have a `name` instead of attributes. A
change of the whole image names no object and says what it became (`brighter`, `part`). Any data set whose samples carry
these fields gets item scores; boxes and masks are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from onediff.errors import UserError
from onediff.evaluation.items.grammar import Description, Item, described

ATTRIBUTES = ("size", "colour", "material", "shape", "name", "place")


class TrueChanges(NamedTuple):
    """The true changes of one pair, with every attribute, and all objects of the two images."""

    items: tuple[Item, ...]
    before: tuple[Description, ...]
    after: tuple[Description, ...]


def known(meta: Mapping[str, Any], where: str = "meta") -> TrueChanges | None:
    """The change list in a sample's `meta`; None if it has none. Raises UserError if it has another form."""
    if "changes" not in meta:
        return None
    try:
        before, after = ({one["number"]: _object(one) for one in meta[side]} for side in ("before", "after"))
        items = tuple(_item(change, before, after) for change in meta["changes"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{where}: changes, before and after do not fit together ({error!r}); see docs/synthetic.md"
        ) from None
    return TrueChanges(items, tuple(before.values()), tuple(after.values()))


def _object(stored: Mapping[str, Any]) -> Description:
    found = {key: str(stored[key]) for key in ATTRIBUTES if key in stored}
    return described(found.pop("name").lower()) | found if "name" in found else found


def _item(change: Mapping[str, Any], before: Mapping[int, Description], after: Mapping[int, Description]) -> Item:
    kind = change["type"]
    old = tuple(before[number] for number in change["before"])
    new = tuple(after[number] for number in change["after"])
    if kind == "brighten":
        return Item(kind, (), {"light": change["brighter"]})
    if kind == "crop":
        return Item(kind, (), {"part": change["part"]})
    if kind == "blur" and not old:
        return Item(kind, ({"name": change["part"]},))
    if kind == "add":
        return Item(kind, new[:1])
    becomes: Description = {}
    if kind == "replace":
        becomes = {key: value for key, value in new[0].items() if key != "place"}
    elif kind == "move":
        becomes = {"place": new[0]["place"]}
    elif kind == "recolour":
        # A painted cut-out keeps its name; a rendered solid is stored in its new colour.
        becomes = {"colour": change.get("colour") or new[0]["colour"]}
    elif kind == "resize":
        size = {"larger": "large", "smaller": "small"}.get(change.get("larger", ""))
        becomes = {"size": size or new[0]["size"]}
    return Item(kind, old, becomes)

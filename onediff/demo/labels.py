"""Labels for each patch of a rendered scene, from the object lists that the renderer writes into `meta`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onediff.data.sample import Sample
from onediff.errors import UserError

ATTRIBUTES = ("shape", "colour", "size", "material")
NOTHING = -1
"""The label of a patch that contains no object's centre."""


class Labels(NamedTuple):
    """The values of each attribute in alphabetical order; a value's index is its class."""

    values: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Labels:
        """Every value that occurs in `samples`. Raises UserError if no sample lists its objects."""
        found: dict[str, set[str]] = {attribute: set() for attribute in ATTRIBUTES}
        for sample in samples:
            for thing in (thing for things in objects(sample) for thing in things):
                for attribute in ATTRIBUTES:
                    found[attribute].add(thing[attribute])
        if not found["shape"]:
            raise UserError("no sample lists its objects in `meta`; use data made by `onediff data render`")
        return cls({attribute: tuple(sorted(values)) for attribute, values in found.items()})

    def of_patches(self, things: list[dict[str, Any]], sides: tuple[int, int], grid: int) -> NDArray[np.int64]:
        """`[grid · grid, attributes]`: the classes of the object whose centre lies in each patch, or `NOTHING`.

        `sides` are the width and height of the image that the objects' boxes refer to. If two centres share a patch, it
        gets the later object's classes.
        """
        classes = np.full((grid * grid, len(ATTRIBUTES)), NOTHING, np.int64)
        for thing in things:
            left, top, right, bottom = thing["box"]
            column = min(grid - 1, int((left + right) / 2 / sides[0] * grid))
            row = min(grid - 1, int((top + bottom) / 2 / sides[1] * grid))
            classes[row * grid + column] = [self.values[a].index(thing[a]) for a in ATTRIBUTES]
        return classes


def objects(sample: Sample) -> Iterator[list[dict[str, Any]]]:
    """The objects of each image of a sample; for a pair, before and then after."""
    for key in ("before", "after") if sample.is_pair else ("objects",):
        if key in sample.meta:
            yield sample.meta[key]

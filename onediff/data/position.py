"""The position of a whole phase in its data, and the order it refers to, as stored in a checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from onediff.data.cursor import Cursor, LaneCursor
from onediff.data.stream import Source, Stream
from onediff.errors import UserError

log = logging.getLogger(__name__)

CHANGES = {
    "lanes": "the global batch (and with it the number of lanes)",
    "seed": "data.seed",
    "block": "data.block",
    "couple": "couple",
    "pack": "pack",
    "names": "the list of data sets in the mix",
}
SOURCE_CHANGES = {
    "weight": "the weight of data set {name!r}",
    "samples": "the number of samples of data set {name!r}",
    "shards": "the shards of data set {name!r}",
    "contents": "the contents of the shards of data set {name!r}",
}


@dataclass(frozen=True)
class Position:
    """The cursors of all lanes, and a description of the order that they refer to."""

    order: dict[str, Any]
    """What determines the order: lanes, seed, block, coupling, packing, and each source's name, weight and shards with
    their sizes and checksums."""
    cursors: tuple[LaneCursor, ...]

    @classmethod
    def start(cls, stream: Stream, lanes: int, block: int) -> Position:
        """The position before the first row."""
        return cls(order_of(stream, lanes, block), ((0,),) * lanes)

    def cursor(self, lanes: Iterable[int]) -> Cursor:
        """The cursor of a rank that reads these lanes."""
        return Cursor({lane: self.cursors[lane] for lane in lanes}, Counter(), Counter())

    def to_json(self) -> dict[str, Any]:
        """For the checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any], current: dict[str, Any], other_order: bool = False) -> Position:
        """The stored position, if its order equals `current`.

        Otherwise the cursors would point at other samples, and this raises UserError naming what changed. With
        `other_order`, the new order continues from the same cursors; if the number of lanes changed, all lanes continue
        from the same sample index.
        """
        cursors = stored_cursors(stored)
        for what, old, new in _compared(stored["order"], current):
            if old == new:
                continue
            changed = f"{what} changed since the checkpoint ({old!r} → {new!r})"
            if not other_order:
                raise UserError(
                    f"cannot resume in the data: {changed}; restore it, start a new run, or set data.other_order=true "
                    "to continue with some samples of this epoch repeated or left out"
                )
            log.warning("%s: some samples of this epoch will be repeated or left out", changed)
        if len(cursors) != current["lanes"]:
            reached = -(-sum(cursor[-1] for cursor in cursors) // current["lanes"])
            cursors = ((reached,),) * current["lanes"]
        elif current["pack"] is None:
            cursors = tuple(cursor[-1:] for cursor in cursors)
        return cls(current, cursors)


def stored_cursors(stored: dict[str, Any]) -> tuple[LaneCursor, ...]:
    """The cursors in a stored position. Older ones store `draws`, one number per lane, with no samples waiting."""
    each = stored["cursors"] if "cursors" in stored else stored["draws"]
    return tuple((one,) if isinstance(one, int) else tuple(one) for one in each)


def order_of(stream: Stream, lanes: int, block: int) -> dict[str, Any]:
    """Everything that the order of samples depends on, as JSON. The number of ranks and workers is not part of it."""
    return {
        "lanes": lanes,
        "seed": stream.seed,
        "block": block,
        "couple": stream.couple,
        "pack": stream.pack,
        "names": [source.name for source in stream.sources],
        "sources": [
            {
                "weight": source.weight,
                "samples": source.lanes.samples,
                "shards": _digest(source),
                "contents": _contents(source),
            }
            for source in stream.sources
        ],
    }


def _compared(stored: dict[str, Any], current: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields everything that the order depends on: a description, the stored value, the current value."""
    for key, what in CHANGES.items():
        yield what, stored.get(key), current[key]
    if stored["names"] != current["names"]:
        return
    for name, old, new in zip(current["names"], stored["sources"], current["sources"], strict=True):
        for key, what in SOURCE_CHANGES.items():
            if key == "contents" and not (old.get(key) and new[key]):
                continue  # an older checkpoint, or shards without checksums
            yield what.format(name=name), old[key], new[key]


def _digest(source: Source) -> str:
    """A digest of the shards' names and sample counts."""
    shards = list(zip(source.shards.names, source.lanes.shard_samples.tolist(), strict=True))
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]


def _contents(source: Source) -> str:
    """A digest of the shards' checksums; empty if any is unknown."""
    sums = [shard.sha256 for shard in source.shards.shards]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16] if all(sums) else ""

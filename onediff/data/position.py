"""Where a phase stands in its data: one number a lane, or some where rows are packed; small enough for any checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from onediff.data.packing import Place
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
    "contents": "what is in the shards of data set {name!r}",
}


@dataclass(frozen=True)
class Position:
    """Draws made by each lane, and a description of the order that they count in."""

    order: dict[str, Any]
    """What determines the order: lanes, seed, block, coupling, packing, and each source's name, weight, shards, their
    sizes and checksums."""
    draws: tuple[int | Place, ...]
    """Draws made so far, by lane; where rows are packed, the draws that wait and then the next one."""

    @classmethod
    def start(cls, stream: Stream, lanes: int, block: int) -> Position:
        """Before the first row."""
        return cls(order_of(stream, lanes, block), (((0,) if stream.pack else 0),) * lanes)

    def to_json(self) -> dict[str, Any]:
        """For the checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any], current: dict[str, Any], other_order: bool = False) -> Position:
        """The stored position, if its order is `current`.

        Raises UserError naming what changed otherwise: the numbers would mean other samples. Where `other_order` allows
        that, the new order goes on as far in as the old one came; with another number of lanes all stand equally far.
        """
        draws: tuple[int | Place, ...] = tuple(tuple(d) if isinstance(d, list) else d for d in stored["draws"])
        for what, old, new in _compared(stored["order"], current):
            if old == new:
                continue
            changed = f"{what} changed since the checkpoint ({old!r} → {new!r})"
            if not other_order:
                raise UserError(
                    f"cannot resume in the data: {changed}; restore it, start a new run, or set data.other_order=true "
                    "to go on though some samples of this epoch then come twice or not at all"
                )
            log.warning("%s: some samples of this epoch come twice or not at all", changed)
        packed = current["pack"] is not None
        if len(draws) != current["lanes"] or packed != isinstance(draws[0], tuple):
            reached = [draw[-1] if isinstance(draw, tuple) else draw for draw in draws]
            if len(reached) != current["lanes"]:
                reached = [-(-sum(reached) // current["lanes"])] * current["lanes"]
            draws = tuple((draw,) if packed else draw for draw in reached)
        return cls(current, draws)


def order_of(stream: Stream, lanes: int, block: int) -> dict[str, Any]:
    """What the order of samples depends on, as JSON; the number of ranks and workers is not part of it."""
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
    """What the order depends on: in words, then as stored, then as it is now."""
    for key, what in CHANGES.items():
        yield what, stored.get(key), current[key]
    if stored["names"] != current["names"]:
        return
    for name, old, new in zip(current["names"], stored["sources"], current["sources"], strict=True):
        for key, what in SOURCE_CHANGES.items():
            if key == "contents" and not (old.get(key) and new[key]):
                continue  # a checkpoint of before this was kept, or shards without checksums
            yield what.format(name=name), old[key], new[key]


def _digest(source: Source) -> str:
    """Tells one list of shards and their sample counts from another."""
    shards = list(zip(source.shards.names, source.lanes.shard_samples.tolist(), strict=True))
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]


def _contents(source: Source) -> str:
    """Tells shards from others of the same names and sizes, by their checksums; nothing where one is unknown."""
    sums = [shard.sha256 for shard in source.shards.shards]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16] if all(sums) else ""
